"""result.json as the page reads it: every part may be missing, and nothing of it is of a surprising type."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from common.errors import SettingsError
from common.releases import Release
from physics import RELEASES
from workers.visualisation.archive import RESULT, Archive
from workers.visualisation.page.live import LiveRun


class SampleCounts(msgspec.Struct, rename={"yield_": "yield"}):
    """What became of one sample's events."""

    category: str = ""
    events_read: int = 0
    events_selected: int = 0
    yield_: float = 0.0
    yield_error: float = 0.0
    cutflow: dict[str, int] = {}


class CategoryCounts(msgspec.Struct, rename={"yield_": "yield"}):
    """What is left of one category's events."""

    events_selected: int = 0
    yield_: float = 0.0
    yield_error: float = 0.0


class Window(msgspec.Struct):
    """Expected events around the Higgs boson's mass; ``low`` and ``high`` in GeV."""

    low: float
    high: float
    n_signal_plus_background: float
    n_background: float
    significance: float | None = None


class Timing(msgspec.Struct):
    """When a run was submitted and finished (ISO 8601), and how fast it went."""

    submitted: str = ""
    finished: str = ""
    seconds: float | None = None
    events_per_second: float | None = None


class Document(msgspec.Struct):
    """A result, finished or partial."""

    release: str = ""
    toy: bool = False
    complete: bool = False
    problems: list[str] = []
    settings: dict[str, Any] = {}
    samples: dict[str, SampleCounts] = {}
    categories: dict[str, CategoryCounts] = {}
    histograms: dict[str, dict[str, Any]] = {}
    window: Window | None = None
    fit: dict[str, Any] | None = None
    fit_problem: str | None = None
    timing: Timing = msgspec.field(default_factory=Timing)

    @property
    def catalogued(self) -> Release | None:
        """The catalogue's entry of the release, if it knows it."""
        try:
            return RELEASES[self.release]
        except SettingsError:
            return None

    @property
    def is_toy(self) -> bool:
        """True where the result or its release says that its events do not come from the detector."""
        return self.toy or (self.catalogued is not None and self.catalogued.toy)

    @property
    def events_read(self) -> int:
        """Events of all samples."""
        return sum(sample.events_read for sample in self.samples.values())

    @property
    def lumi_ifb(self) -> float | None:
        """Luminosity that the result stands for, in fb⁻¹."""
        lumi, fraction = self.settings.get("lumi"), self.settings.get("fraction", 1.0)
        return lumi * fraction if isinstance(lumi, int | float) and isinstance(fraction, int | float) else None


UNREADABLE = Document(problems=["its result.json cannot be read"])


def of_result(result: Mapping[str, Any]) -> Document:
    """The document of a result; UNREADABLE where it is none."""
    try:
        return msgspec.convert(result, Document)
    except msgspec.ValidationError:
        return UNREADABLE


def of_live(run: LiveRun) -> Document:
    """What is known of a run that has no result folder: its partial result, or at least its settings."""
    document = of_result(run.result or {})
    if document.release or run.settings is None:
        return document
    release = RELEASES[run.settings.release]
    return msgspec.structs.replace(document, release=release.name, settings=run.settings.to_result(toy=release.toy))


class Documents:
    """The documents of an archive, the last few hundred of them kept."""

    def __init__(self, archive: Archive) -> None:
        def read(run_id: str, _written_ns: int) -> Document:
            try:
                return msgspec.json.decode(archive.read(run_id, RESULT) or b"", type=Document)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return UNREADABLE

        def read_summary(run_id: str, written_ns: int) -> Document:
            document = read(run_id, written_ns)
            document.histograms, document.fit = {}, None
            return document

        #: The whole document of a run, by its id and the time it was written.
        self.whole = lru_cache(maxsize=16)(read)
        #: The same without histograms and fit: a list needs hundreds of them.
        self.summary = lru_cache(maxsize=500)(read_summary)
