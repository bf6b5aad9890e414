"""The texts of the page: formatted numbers, the names of settings and of a fit's numbers, and captions of plots."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from markupsafe import Markup

from common.rounding import MISSING, duration, number, rounded, rounded_yield, with_error  # noqa: F401  for templates
from workers.visualisation.archive import File
from workers.visualisation.page.document import CategoryCounts, Document, SampleCounts, are_numbers, sum_of
from workers.visualisation.result_files import FIT_FIGURES

STAGE_NAMES = {"data-loader": "loaded", "data-processor": "selected", "analysis": "analysed"}
#: What happens to a chunk.
STEP_NAMES = {
    "planned": "opened the file",
    "read": "read",
    "selected": "selected",
    "added": "added to the result",
    "published": "waited until the next queue had room",
    "waited": "waited",
}
SETTING_NAMES = {
    "lumi": "Luminosity [fb⁻¹]",
    "fraction": "Fraction of each file",
    "pt_cuts": "pT cuts [GeV]",
    "data": "Data from",
    "samples": "Samples",
    "chunk_entries": "Entries per chunk",
    "demo_events": "Demo events",
    "plots": "Plots",
    "release": "Release",
}
FIT_NAMES = {
    "signal_strength": "Signal strength μ",
    "signal_strength_error": "Uncertainty of μ",
    "significance_observed": "Significance, observed [σ]",
    "significance_expected": "Significance, expected [σ]",
    "cls_mu1": "CLs at μ = 1",
    "p0_observed": "p₀, observed",
    "mu": "signal strength μ",
    "twice_nll_ratio": "−2 ln λ to the saturated model",
    "threshold": "−2Δ ln L of the statistical interval",
}
_FIT_CAPTIONS = {
    "fit_pulls": "Pulls of the nuisance parameters, after the fit",
    "fit_correlations": "Correlations of the fit's parameters",
    "fit_likelihood": "Likelihood scan of the signal strength μ",
    "fit_limits": "Limit on the signal strength μ, by CLs",
}
_IMAGES = ("png", "jpg")
_MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "csv": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8",
    "tex": "text/plain; charset=utf-8",
}
#: The names of a recording of the CPU monitor in the folder of a run.
RECORDINGS = ("cpu.csv", "cpu.jsonl")
_DESCRIPTIONS = {
    **dict.fromkeys(RECORDINGS, "CPU and memory of each service, recorded by cpu_monitor"),
    "result.json": "the result, for programs",
    "timeline.json": "what each replica did when, for Perfetto",
    "histograms.root": "the histograms, for ROOT and uproot",
    "workspace.json": "the statistical model and its data, for pyhf",
}


def event_yield(counts: SampleCounts | CategoryCounts) -> tuple[str, str]:
    """Format a yield and its uncertainty."""
    return rounded_yield(counts.events_selected, counts.yield_, counts.yield_error)


def throughput(events_per_second: float) -> str:
    """Format events per second with three significant figures: 6,630 or 0.123."""
    if not math.isfinite(events_per_second) or abs(events_per_second) < 100:
        return number(events_per_second, 3)
    return f"{float(f'{events_per_second:.3g}'):,.0f}"


def setting(value: object) -> str:
    """Format the value of a setting."""
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


def provenance(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return what made a result, by heading: the software, then every mapping of it, such as the input files."""
    parts = {"Software": {name: setting(value) for name, value in given.items() if not isinstance(value, dict)}}
    for name, part in given.items():
        if isinstance(part, dict):
            parts[name.replace("_", " ").capitalize()] = {key: setting(value) for key, value in part.items()}
    return {heading: pairs for heading, pairs in parts.items() if pairs}


def cores(number_of_cores: float) -> str:
    """Format CPU time per time: 0.25 or 3.1."""
    return f"{number_of_cores:.2f}" if number_of_cores < 1 else f"{number_of_cores:.1f}"


def short(seconds: float) -> str:
    """Format a duration that may be below a second: 12 ms, 1.2 s."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)


def step(name: str, service: str) -> str:
    """Describe a step of the chunks in a service."""
    if name == "waited":
        return f"waited in the queue of the {service}"
    return f"{service}: {STEP_NAMES.get(name, name)}"


def timestamp(since_1970_s: float, *, seconds: bool = False) -> Markup:
    """Format seconds since 1970 as a <time> element in UTC: date and minutes, or with ``seconds`` the time alone."""
    when = datetime.fromtimestamp(since_1970_s, UTC)
    shown = f"{when:%H:%M:%S} UTC" if seconds else f"{when:%Y-%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(f"{when:%Y-%m-%dT%H:%M:%SZ}", shown)


def size(number_of_bytes: float) -> str:
    """Format a number of bytes: 12.3 MB."""
    value = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def fit_numbers(fit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers of a fit with their labels."""
    return [(fit_name(name), value) for name, value in _texts(fit).items()]


def fit_name(name: str) -> str:
    """Return the label of a number of the fit."""
    return FIT_NAMES.get(name, name.replace("_", " "))


def fit_tables(fit: Mapping[str, Any], title: str = "") -> list[Table]:
    """Return a table for each mapping of numbers in a fit, at any depth; arrays are left out."""
    tables = []
    for name, part in fit.items():
        heading = f"{title}, {name}".strip(", ").replace("_", " ").capitalize()
        if not isinstance(part, dict) or not part:
            continue
        entries = [entry for entry in part.values() if isinstance(entry, dict)]
        columns = list(dict.fromkeys(key for entry in entries for key, value in entry.items() if _is_plain(value)))
        if len(entries) == len(part) and columns:
            texts = {row: _texts(entry) for row, entry in part.items()}
            rows = [(row, [found.get(column, MISSING) for column in columns]) for row, found in texts.items()]
            of_bins = [row for row in rows if row[0].startswith("mc_statistics[")]
            tables.append(Table(heading, columns, [row for row in rows if row not in of_bins]))
            if of_bins:
                tables.append(Table(f"{heading}, MC statistics of each bin", columns, of_bins))
        else:
            plain = [(row, [value]) for row, value in _texts(part).items() if part[row] is not None]
            if plain:
                tables.append(Table(heading, ["value"], plain))
            tables += fit_tables(part, heading)
    return tables


@dataclass(frozen=True)
class PlotFiles:
    """A plot of a result: its file, caption and alternative text, and its files in other formats."""

    file: str
    caption: str
    alternative: str
    other_formats: tuple[File, ...]
    is_main: bool
    is_fit: bool


def media_type(name: str) -> str:
    """Return the media type of a file."""
    return _MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


def is_displayed(name: str) -> bool:
    """Return True if a browser may display the file; other files can only be downloaded."""
    return media_type(name) != "application/octet-stream"


def description(name: str, document: Document) -> str:
    """Return a description of a file, empty if there is none."""
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    return caption(name, document) if name.endswith((*_IMAGES, "pdf")) else ""


def caption(name: str, document: Document) -> str:
    """Return the caption of a plot by its file's name."""
    stem, analysis = name.rpartition(".")[0], document.known_analysis
    if analysis is not None:
        fitted = analysis.fitted.caption
        peak = analysis.model.peak
        captions = {
            **_FIT_CAPTIONS,
            "fit_prefit": f"{fitted} before the fit",
            "fit_postfit": f"{fitted} after the fit",
            **({} if peak is None else {f"fit_{peak.name}": f"Likelihood scan of the {peak.caption}"}),
        }
        if stem in captions:
            return captions[stem]
        if stem in analysis.histograms:
            observable = analysis.histograms[stem]
            channel = analysis.channel_of(stem)
            where = f"{channel.text} channel" if channel else "all channels" if observable.per_channel else ""
            return f"{observable.caption}, {where}" if where else observable.caption
    return stem.replace("_", " ").replace("-", " ")


def plots(files: Sequence[File], document: Document) -> list[PlotFiles]:
    """Return the plots of a result in order: the histograms, the fit, other images."""
    by_stem: dict[str, list[File]] = {}
    for file in files:
        by_stem.setdefault(file.name.rpartition(".")[0], []).append(file)
    analysis = document.known_analysis
    main = None if analysis is None else analysis.model.observable
    peak = None if analysis is None else analysis.model.peak
    known = (*document.histograms, *FIT_FIGURES, *([] if peak is None else [f"fit_{peak.name}"]))

    def order(stem: str) -> tuple[int, str]:
        return (known.index(stem) if stem in known else len(known), stem)

    found = []
    for stem in sorted(by_stem, key=order):
        same = by_stem[stem]
        kinds = {file.name.rpartition(".")[2].lower(): file for file in same}
        image = next((kinds[kind] for kind in _IMAGES if kind in kinds), None)
        if image is not None:
            others = tuple(file for file in same if file is not image)
            name = image.name
            described = caption(name, document), alternative(name, document)
            found.append(PlotFiles(name, *described, others, stem == main, stem.startswith("fit_")))
    return found


def alternative(name: str, document: Document) -> str:
    """Return the alternative text of a plot: its caption, and a histogram's range and sums."""
    histogram = document.histograms.get(name.rpartition(".")[0])
    text = caption(name, document) + (" (toy, not ATLAS data)" if document.is_toy else "")
    sums = {category: total for category in document.categories if (total := sum_of(histogram, category)) is not None}
    edges = (histogram or {}).get("edges")
    if not sums or not are_numbers(edges):
        return text
    parts = [f"{name} {number(total)}" for name, (total, _) in sums.items()]
    analysis = document.known_analysis
    known = {} if analysis is None else analysis.histograms
    stem = name.rpartition(".")[0]
    unit = f" {known[stem].unit}" if stem in known else ""
    return f"{text}: histogram from {edges[0]:g} to {edges[-1]:g}{unit}; events in it: {', '.join(parts)}"


@dataclass(frozen=True)
class Table:
    """A table of named rows."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def _texts(part: Mapping[str, Any]) -> dict[str, str]:
    """Format the plain values of a part of the fit; a value and its error have the digits that the error allows."""
    texts = {name: setting(value) for name, value in part.items() if _is_plain(value)}
    for name in texts:
        error = "constraint" if name == "pull" else re.sub("^value", "error", name)
        error = f"{name}_error" if error == name else error
        value, uncertainty = part[name], part.get(error)
        if _is_number(value) and _is_number(uncertainty):
            texts[name], texts[error] = rounded(value, uncertainty)
    return texts


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
