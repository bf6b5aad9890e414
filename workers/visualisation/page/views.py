"""What the page shows of a run, ready for the templates: captions, labels, numbers as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from markupsafe import Markup, escape

from workers.visualisation.archive import Entry, File
from workers.visualisation.page.document import Document
from workers.visualisation.page.live import LiveRun

CHANNELS = {"4e": "4e", "4mu": "4μ", "2e2mu": "2e2μ"}
STAGE_NAMES = {"data-loader": "loaded", "data-processor": "selected", "analysis": "analysed"}
SETTING_NAMES = {
    "lumi": "Luminosity [fb⁻¹]",
    "fraction": "Fraction of each file",
    "pt_cuts": "pT cuts on the leading leptons [GeV]",
    "data": "Data from",
    "samples": "Samples",
    "chunk_entries": "Entries of a chunk",
    "demo_events": "Demo events",
    "release": "Release",
}
FIT_NAMES = {
    "signal_strength": "Signal strength μ",
    "signal_strength_error": "Uncertainty of μ",
    "significance_observed": "Significance, observed [σ]",
    "significance_expected": "Significance, expected [σ]",
    "cls_mu1": "CLs at μ = 1",
}
#: Captions of known pictures, by what their names hold; the first that matches counts.
_CAPTIONS = (
    (r"pulls?|ranking|impacts?", "Pulls of the nuisance parameters, after the fit"),
    (r"correlations?", "Correlations of the fit's parameters"),
    (r"mass", "Likelihood scan of the Higgs boson's mass"),
    (r"scan|likelihood|nll", "Likelihood scan of the signal strength μ"),
    (r"cls|limits?", "Limit on the signal strength μ, by CLs"),
    (r"post[-_]?fit", "Four-lepton mass after the fit"),
    (r"pre[-_]?fit", "Four-lepton mass before the fit"),
    (r"m4l", "Four-lepton mass"),
    (r"m_?z1", "Mass of the leading Z candidate"),
    (r"m_?z2", "Mass of the other Z candidate"),
    (r"lead_pt|pt_?lead", "Transverse momentum of the leading lepton"),
    (r"cutflow", "Cutflow"),
)
_FIT_ORDER = tuple(
    f"fit_{name}" for name in ("prefit", "postfit", "pulls", "correlations", "likelihood", "limits", "mass")
)
#: Kinds of pictures, the one that is shown first; an svg's styles are inline, which the page's policy forbids.
_PICTURES = ("png", "jpg", "svg")
_MEDIA_TYPES = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "csv": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8",
    "tex": "text/plain; charset=utf-8",
}
_WHAT = {
    "result.json": "everything on this page, for programs",
    "histograms.root": "the histograms, for ROOT and uproot",
    "workspace.json": "the statistical model and its data, for pyhf",
}


@dataclass(frozen=True)
class Plot:
    """A picture of a result: its file, what it is called and what somebody who cannot see it is told."""

    file: str
    caption: str
    alternative: str
    also: tuple[File, ...]
    is_main: bool


@dataclass(frozen=True)
class Table:
    """A table of named rows."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Row:
    """A run in the list: ``state`` is complete, incomplete or failed; it ended at ``when_s``, seconds since 1970."""

    run_id: str
    state: str
    when_s: float
    document: Document
    problem: str | None = None


def row(entry: Entry, document: Document) -> Row:
    """The row of a finished run."""
    state = "complete" if document.complete else "incomplete"
    return Row(entry.run_id, state, entry.written_ns / 1e9, document, next(iter(document.problems), None))


def failed_row(run: LiveRun) -> Row:
    """The row of a run that came to nothing."""
    return Row(run.run_id, "failed", run.failed or run.began, Document(), run.problem)


def media_type(name: str) -> str:
    """The media type of a file."""
    return _MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


def is_shown(name: str) -> bool:
    """Whether a browser may open a file of this name itself; others are only to be saved."""
    return media_type(name) not in ("application/octet-stream", "image/svg+xml")


def what_is(name: str) -> str:
    """What a file is good for, in a few words; empty where that is not known."""
    if name in _WHAT:
        return _WHAT[name]
    return caption(name) if name.endswith((*_PICTURES, "pdf")) else ""


def caption(name: str) -> str:
    """What a picture shows, by its file's name."""
    stem = name.rpartition(".")[0]
    text = next((text for pattern, text in _CAPTIONS if re.search(pattern, stem)), None)
    if text is None:
        return stem.replace("_", " ").replace("-", " ")
    words = re.split(r"[_.-]", stem)
    channel = next((CHANNELS[word] for word in words if word in CHANNELS), None)
    if text.startswith("Four-lepton"):
        return f"{text}, {channel} channel" if channel else f"{text}, all channels"
    return f"{text}, {channel} channel" if channel else text


def plots(files: Sequence[File], document: Document) -> list[Plot]:
    """The pictures of a result, one of each name: m4l first, its channels, the other histograms, then the fit's."""
    by_stem: dict[str, list[File]] = {}
    for file in files:
        by_stem.setdefault(file.name.rpartition(".")[0], []).append(file)
    known = (*document.histograms, *_FIT_ORDER)

    def order(stem: str) -> tuple[int, str]:
        return (known.index(stem) if stem in known else len(known), stem)

    found = []
    for stem in sorted(by_stem, key=order):
        same = by_stem[stem]
        kinds = {file.name.rpartition(".")[2].lower(): file for file in same}
        picture = next((kinds[kind] for kind in _PICTURES if kind in kinds), None)
        if picture is not None:
            also = tuple(file for file in same if file is not picture)
            found.append(
                Plot(picture.name, caption(picture.name), alternative(picture.name, document), also, stem == "m4l")
            )
    return found


def alternative(name: str, document: Document) -> str:
    """A picture in words: for a histogram its range and its sums, else its caption."""
    histogram = document.histograms.get(name.rpartition(".")[0])
    text = caption(name) + (" (toy, not ATLAS data)" if document.is_toy else "")
    sums = {category: total for category in document.categories if (total := _sum(histogram, category)) is not None}
    edges = (histogram or {}).get("edges")
    if not sums or not _are_numbers(edges):
        return text
    parts = [f"{'data' if name == 'data' else name} {number(total)}" for name, total in sums.items()]
    return f"{text}: histogram from {edges[0]:g} to {edges[-1]:g} GeV; events in it: {', '.join(parts)}"


def channel_table(document: Document) -> tuple[list[str], list[tuple[str, list[float]]]] | None:
    """Events in each channel's histogram: its channels, and per category its sums; None where they are not there."""
    names = [name for name in document.histograms if name.startswith("m4l_") and name[4:] in CHANNELS]
    rows = []
    for category in document.categories:
        sums = [_sum(document.histograms[name], category) for name in names]
        known = [total for total in sums if total is not None]
        if names and len(known) == len(names):
            rows.append((category, known))
    return ([CHANNELS[name[4:]] for name in names], rows) if rows else None


def steps(document: Document) -> list[str]:
    """The steps of the cutflow, in the order of the selection."""
    return list(dict.fromkeys(step for sample in document.samples.values() for step in sample.cutflow))


def expected(document: Document) -> tuple[float, float]:
    """Events that the simulation expects, and their statistical uncertainty."""
    simulation = [counts for category, counts in document.categories.items() if category != "data"]
    return math.fsum(c.yield_ for c in simulation), math.sqrt(math.fsum(c.yield_error**2 for c in simulation))


def label(category: str, document: Document) -> Markup:
    """A category's label, from the catalogue's TeX to HTML."""
    known = document.catalogued
    tex = next((c.label for c in known.categories if c.name == category), category) if known else category
    tex = tex.replace("$", "").replace(r"\,", " ").replace(r"\to", "→")
    text = str(escape(re.sub(r"\\bar\{(.)\}", "\\1\N{COMBINING MACRON}", tex)))
    text = re.sub(r"\^\{(.*?)\}", r"\1", text)
    return Markup(re.sub(r"_(\w)", r"<sub>\1</sub>", text))  # noqa: S704  escaped two lines above


def fit_numbers(fit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plain numbers of a fit, with their names in words."""
    return [
        (FIT_NAMES.get(name, name.replace("_", " ")), setting(value)) for name, value in fit.items() if _is_plain(value)
    ]


def fit_tables(fit: Mapping[str, Any], title: str = "") -> list[Table]:
    """The tables of a fit: each mapping of numbers, and each mapping of such mappings, however deep; no arrays."""
    tables = []
    for name, part in fit.items():
        heading = f"{title}, {name}".strip(", ").replace("_", " ").capitalize()
        if not isinstance(part, dict) or not part:
            continue
        entries = [entry for entry in part.values() if isinstance(entry, dict)]
        columns = list(dict.fromkeys(key for entry in entries for key, value in entry.items() if _is_plain(value)))
        if len(entries) == len(part) and columns:
            rows = [(row, [setting(entry.get(column)) for column in columns]) for row, entry in part.items()]
            tables.append(Table(heading, columns, rows))
        else:
            plain = [(row, [setting(value)]) for row, value in part.items() if _is_plain(value)]
            if plain:
                tables.append(Table(heading, ["value"], plain))
            tables += fit_tables(part, heading)
    return tables


def number(value: float | None, digits: int = 4) -> str:
    """A number as people write it: 1,234 or 0.0123."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def rate(events_per_second: float) -> str:
    """Events per second, to three figures: 6,630 or 0.123."""
    if not math.isfinite(events_per_second) or abs(events_per_second) < 100:
        return number(events_per_second, 3)
    return f"{float(f'{events_per_second:.3g}'):,.0f}"


def data_from(document: Document) -> str:
    """Where a run's data come from, in words."""
    given = document.settings.get("data")
    return str(given) if given else "made on this machine" if document.is_toy else "the release's own addresses"


def yielded(value: float) -> str:
    """A yield: a count as it is, a sum of weights with three decimals."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def title(run_id: str, run: LiveRun | None, document: Document) -> str:
    """The window's title: marks first, for there may be room for no more."""
    marks = ["TOY"] if document.is_toy else []
    if run is None:
        marks += [] if document.complete else ["INCOMPLETE"]
    elif run.state == "failed":
        marks.append("FAILED")
    elif run.total:
        marks.append(f"{100 * run.stages[-1].events // run.total} %")
    return " – ".join([*marks, run_id])


def setting(value: object) -> str:
    """A setting's value in words."""
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case list() | tuple():
            return ", ".join(setting(item) for item in value) or "none"
        case dict():
            return ", ".join(f"{name}: {setting(item)}" for name, item in value.items())
    return str(value)


def duration(seconds: float | None) -> str:
    """A time span: 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(seconds: float) -> Markup:
    """A time as a <time> element, in UTC."""
    when = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{when:%Y-%m-%dT%H:%M:%SZ}", f"{when:%Y-%m-%d %H:%M} UTC")


def size(number_of_bytes: int) -> str:
    """A file's size."""
    value = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _sum(histogram: Mapping[str, Any] | None, category: str) -> float | None:
    part = (histogram or {}).get(category)
    values = part.get("values") if isinstance(part, dict) else None
    return math.fsum(values) if _are_numbers(values) else None


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
