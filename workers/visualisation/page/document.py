"""Typed objects for result.json; every part is optional, and a file that is not valid raises nothing."""

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
    """The events of one sample."""

    category: str = ""
    events_read: int = 0
    events_selected: int = 0
    yield_: float = 0.0
    yield_error: float = 0.0
    cutflow: dict[str, int] = {}


class CategoryCounts(msgspec.Struct, rename={"yield_": "yield"}):
    """The selected events of one category."""

    events_selected: int = 0
    yield_: float = 0.0
    yield_error: float = 0.0


class Window(msgspec.Struct):
    """Expected events in the window around the Higgs boson's mass; ``low`` and ``high`` in GeV."""

    low: float
    high: float
    n_signal_plus_background: float
    n_background: float
    significance: float | None = None


class Timing(msgspec.Struct):
    """When a run was submitted and finished (ISO 8601), and its throughput."""

    submitted: str = ""
    finished: str = ""
    seconds: float | None = None
    events_per_second: float | None = None


class Document(msgspec.Struct):
    """A final or partial result."""

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
    def known_release(self) -> Release | None:
        """The release; None if there is none with this name."""
        try:
            return RELEASES[self.release]
        except SettingsError:
            return None

    @property
    def is_toy(self) -> bool:
        """True if the result or its release says that the events are simulated toys, data included."""
        return self.toy or (self.known_release is not None and self.known_release.toy)

    @property
    def events_read(self) -> int:
        """Number of events that were read, of all samples."""
        return sum(sample.events_read for sample in self.samples.values())

    @property
    def lumi_ifb(self) -> float | None:
        """Integrated luminosity in fb⁻¹: LUMI × FRACTION."""
        lumi, fraction = self.settings.get("lumi"), self.settings.get("fraction", 1.0)
        return lumi * fraction if isinstance(lumi, int | float) and isinstance(fraction, int | float) else None


UNREADABLE = Document(problems=["its result.json cannot be read"])


def to_document(result: Mapping[str, Any]) -> Document:
    """Return the document of a result; UNREADABLE if it is not valid."""
    try:
        return msgspec.convert(result, Document)
    except msgspec.ValidationError:
        return UNREADABLE


def partial_document(run: LiveRun) -> Document:
    """Return the partial result of a run under way; before its first one, a document with the settings only."""
    document = to_document(run.result or {})
    if document.release or run.settings is None:
        return document
    release = RELEASES[run.settings.release]
    return msgspec.structs.replace(document, release=release.name, settings=run.settings.to_result(toy=release.toy))


class Documents:
    """Reads the documents of an archive, and caches them."""

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

        #: The document of a run, by its id and the time it was written.
        self.whole = lru_cache(maxsize=16)(read)
        #: The same without histograms and fit, for the list of runs.
        self.summary = lru_cache(maxsize=500)(read_summary)
