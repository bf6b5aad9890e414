"""The documents of runs (result.json), and what the page shows of them.

Every part of a document is optional; one that is not valid raises nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeGuard

import msgspec
from markupsafe import Markup, escape

from common.analyses import Analyses, Analysis
from common.errors import SettingsError
from common.rounding import rounded
from common.settings import RunSettings
from physics import ANALYSES
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
    """The events in the window around the signal; ``low`` and ``high`` in the unit of the observable.

    Numbers of what the run has no sample of are None.
    """

    low: float
    high: float
    n_signal_plus_background: float | None
    n_background: float | None
    unit: str = ""
    n_data: int | None = None
    n_signal: float | None = None
    n_signal_error: float | None = None
    n_background_error: float | None = None
    n_signal_plus_background_error: float | None = None
    significance: float | None = None
    significance_s_b: float | None = None


class Timing(msgspec.Struct):
    """When a run was submitted and finished (ISO 8601), and its throughput."""

    submitted: str = ""
    finished: str = ""
    seconds: float | None = None
    events_per_second: float | None = None


class Document(msgspec.Struct):
    """A final or partial result."""

    analysis: str = RunSettings.analysis
    release: str = ""
    toy: bool = False
    complete: bool = False
    problems: list[str] = []
    warnings: list[str] = []
    settings: dict[str, Any] = {}
    samples: dict[str, SampleCounts] = {}
    categories: dict[str, CategoryCounts] = {}
    histograms: dict[str, dict[str, Any]] = {}
    window: Window | None = None
    fit: dict[str, Any] | None = None
    fit_problem: str | None = None
    timing: Timing = msgspec.field(default_factory=Timing)
    provenance: dict[str, Any] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies the analysis of the run, under the names of result.json."""
        return {"analysis": self.analysis, "release": self.release, "provenance": self.provenance}

    @property
    def known_analysis(self) -> Analysis | None:
        """The analysis of the run; None if this process has not loaded its code."""
        try:
            return ANALYSES.of_result(self.identity)
        except SettingsError:
            return None

    @property
    def own_analysis(self) -> str:
        """The name of a user's own analysis; empty for the shipped one."""
        return "" if self.analysis == ANALYSES.name else self.analysis

    @property
    def is_toy(self) -> bool:
        """True if the result or its release says that the events are simulated toys, data included."""
        return self.toy or (self.known_analysis is not None and self.known_analysis.toy)

    @property
    def events_read(self) -> int:
        """Number of events that were read, of all samples."""
        return sum(sample.events_read for sample in self.samples.values())

    @property
    def lumi_ifb(self) -> float | None:
        """Integrated luminosity in fb⁻¹: LUMI × FRACTION."""
        lumi, fraction = self.settings.get("lumi"), self.settings.get("fraction", 1.0)
        return lumi * fraction if isinstance(lumi, int | float) and isinstance(fraction, int | float) else None


# As in common/messages.py: the threads of the page must not derive this at the same time.
_DECODER = msgspec.json.Decoder(Document)
UNREADABLE = Document(problems=["its result.json cannot be read"])


def to_document(result: Mapping[str, Any]) -> Document:
    """Return the document of a result; UNREADABLE if it is not valid."""
    try:
        return msgspec.convert(result, Document)
    except msgspec.ValidationError:
        return UNREADABLE


class Documents:
    """Reads the documents of an archive, and caches them."""

    def __init__(self, archive: Archive, analyses: Analyses) -> None:
        def read(run_id: str, _written_ns: int) -> Document:
            try:
                document = _DECODER.decode(archive.read(run_id, RESULT) or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return UNREADABLE
            with suppress(SettingsError):
                analyses.of_result(document.identity)  # loads an own analysis
            return document

        #: Reads the document of a run, by its id and the time it was written.
        self.read = read
        #: The same, of the documents that were read last.
        self.whole = lru_cache(maxsize=16)(read)


def channel_table(document: Document) -> tuple[list[str], dict[str, list[str]]] | None:
    """Return the channels, and the texts of each category's events in their histograms; None without channels."""
    analysis = document.known_analysis
    if analysis is None:
        return None
    fitted = analysis.model.observable
    channels = [one for one in analysis.channels if f"{fitted}_{one.name}" in document.histograms]
    names = [f"{fitted}_{one.name}" for one in channels]
    rows = {}
    for category in document.categories:
        sums = [sum_of(document.histograms[name], category) for name in names]
        known = [total for total in sums if total is not None]
        if names and len(known) == len(names):
            is_count = category in analysis.with_role("data")
            rows[category] = [f"{total:,.0f}" if is_count else rounded(total, error)[0] for total, error in known]
    return ([one.text for one in channels], rows) if rows else None


def steps(document: Document) -> list[str]:
    """Return the steps of the cutflow, in the order of the selection."""
    return list(dict.fromkeys(step for sample in document.samples.values() for step in sample.cutflow))


def expected(document: Document) -> tuple[float, float] | None:
    """Return the events expected from simulation, and their statistical uncertainty; None without simulation."""
    analysis = document.known_analysis
    data = () if analysis is None else analysis.with_role("data")
    simulation = [counts for category, counts in document.categories.items() if category not in data]
    if analysis is None or not simulation:
        return None
    return math.fsum(c.yield_ for c in simulation), math.sqrt(math.fsum(c.yield_error**2 for c in simulation))


def data_events(document: Document) -> int | None:
    """Return the selected events of data; None without data."""
    found = [counts.events_selected for category, counts in document.categories.items() if is_data(category, document)]
    return sum(found) if found else None


def is_data(category: str, document: Document) -> bool:
    """Return True for a category of data; of a release that is not known, no category is."""
    return document.known_analysis is not None and category in document.known_analysis.with_role("data")


def process(document: Document) -> Markup | None:
    """Return what the analysis looks for, as HTML; None for a release that is not known."""
    return None if document.known_analysis is None else _html(document.known_analysis.process)


def label(category: str, document: Document) -> Markup:
    """Return a category's label as HTML, converted from the release's TeX."""
    known = document.known_analysis
    return _html(next((c.label for c in known.categories if c.name == category), category) if known else category)


def _html(tex: str) -> Markup:
    for command, character in (("$", ""), (r"\,", " "), (r"\to ", "→"), (r"\ell", "ℓ")):
        tex = tex.replace(command, character)
    text = str(escape(re.sub(r"\\bar\{(.)\}", "\\1\N{COMBINING MACRON}", tex)))
    text = re.sub(r"\^\{(.*?)\}", r"\1", text)
    return Markup(re.sub(r"_(?:(\w)|\{(.*?)\})", r"<sub>\1\2</sub>", text))  # noqa: S704  escaped two lines above


def peak(document: Document) -> tuple[str, float, float | None, str] | None:
    """Return what was measured by the peak's position, its value, uncertainty and unit; None without a measurement."""
    analysis = document.known_analysis
    if analysis is None or analysis.model.peak is None:
        return None
    unit, suffix = analysis.fitted.unit, analysis.fitted.suffix
    measured = (document.fit or {}).get(analysis.model.peak.name)
    if not isinstance(measured, dict) or not isinstance(value := measured.get(f"value{suffix}"), int | float):
        return None
    error = measured.get(f"error{suffix}")
    return analysis.model.peak.caption, value, error if isinstance(error, int | float) else None, unit


def main_histogram(document: Document) -> str | None:
    """Return the name of the fitted histogram; None for a release that is not known."""
    return None if document.known_analysis is None else document.known_analysis.model.observable


def data_from(document: Document) -> str:
    """Return where a run's data come from."""
    given = document.settings.get("data")
    return str(given) if given else "generated on this machine" if document.is_toy else "the addresses of the release"


def title(run_id: str, run: LiveRun | None, document: Document) -> str:
    """Return the title of a run's page: TOY, INCOMPLETE, FAILED or CANCELLED, the percentage analysed, the run id."""
    labels = ["TOY"] if document.is_toy else []
    if run is not None and run.has_failed:
        labels.append(run.state.upper())
    elif document.problems if run is not None else not document.complete:
        labels.append("INCOMPLETE")
    if run is not None and not run.has_failed and run.percent is not None:
        labels.append(f"{run.percent} %")
    return " – ".join([*labels, run_id])


def parameter_label(name: str, document: Document) -> Markup | None:
    """Return the label of a parameter of the fit or of a category as HTML; None for any other name.

    A bin's statistical parameter is named by the bin's edges.
    """
    analysis = document.known_analysis
    if analysis is None:
        return None
    model, fitted = analysis.model, analysis.fitted
    scale = () if model.scale is None else (model.scale,)
    labels = {one.name: one.label for one in (*model.normalisations, *scale, *analysis.categories)}
    edges = document.histograms.get(fitted.name, {}).get("edges")
    bin_of = re.fullmatch(r"mc_statistics\[(\d+)\]", name)
    if bin_of and are_numbers(edges) and int(bin_of[1]) + 1 < len(edges):
        low, high = edges[int(bin_of[1]) : int(bin_of[1]) + 2]
        return Markup("{}").format(f"{low:g}–{high:g} {fitted.unit}".rstrip())
    return _html(labels[name]) if name in labels else None


def sum_of(histogram: Mapping[str, Any] | None, category: str) -> tuple[float, float | None] | None:
    """Return the events of a category in a histogram and their uncertainty; None if the histogram does not have them.

    The uncertainty is None if the histogram has no variances.
    """
    part = (histogram or {}).get(category)
    values, variances = (part.get("values"), part.get("variances")) if isinstance(part, dict) else (None, None)
    if not are_numbers(values):
        return None
    return math.fsum(values), math.sqrt(max(0.0, math.fsum(variances))) if are_numbers(variances) else None


def are_numbers(values: object) -> TypeGuard[list[float]]:
    """Return True for a list of numbers that is not empty."""
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)
