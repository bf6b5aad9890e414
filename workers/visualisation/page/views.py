"""The rows, tables and texts of a run that the templates show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from markupsafe import Markup, escape

from workers.visualisation.archive import Entry
from workers.visualisation.page.document import Document, partial_document
from workers.visualisation.page.formatting import setting
from workers.visualisation.page.live import LiveRun

CHANNELS = {"4e": "4e", "4mu": "4μ", "2e2mu": "2e2μ"}
STAGE_NAMES = {"data-loader": "loaded", "data-processor": "selected", "analysis": "analysed"}
SETTING_NAMES = {
    "lumi": "Luminosity [fb⁻¹]",
    "fraction": "Fraction of each file",
    "pt_cuts": "pT cuts on the leading leptons [GeV]",
    "data": "Data from",
    "samples": "Samples",
    "chunk_entries": "Entries per chunk",
    "demo_events": "Demo events",
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
    "value_gev": "m_H [GeV]",
    "error_gev": "uncertainty, m4l scale included [GeV]",
    "m4l_scale_error_gev": "of which m4l scale [GeV]",
    "threshold": "−2Δ ln L of the statistical interval",
}


@dataclass(frozen=True)
class Table:
    """A table of named rows."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Row:
    """A finished or failed run in the list.

    ``state`` is complete, incomplete or failed; ``finished_s`` is in seconds since
    1970, None for a failed run.
    """

    run_id: str
    state: str
    finished_s: float | None
    document: Document
    problem: str | None = None


def row(entry: Entry, document: Document) -> Row:
    """Return the row of a finished run."""
    state = "complete" if document.complete else "incomplete"
    return Row(entry.run_id, state, entry.written_ns / 1e9, document, next(iter(document.problems), None))


def failed_row(run: LiveRun) -> Row:
    """Return the row of a failed run."""
    return Row(run.run_id, "failed", None, partial_document(run), run.problem)


def channel_table(document: Document) -> tuple[list[str], list[tuple[str, list[float]]]] | None:
    """Return the channels, and the events of each category in the channels' histograms; None without channels."""
    names = [name for name in document.histograms if name.startswith("m4l_") and name[4:] in CHANNELS]
    rows = []
    for category in document.categories:
        sums = [sum_of(document.histograms[name], category) for name in names]
        known = [total for total in sums if total is not None]
        if names and len(known) == len(names):
            rows.append((category, known))
    return ([CHANNELS[name[4:]] for name in names], rows) if rows else None


def steps(document: Document) -> list[str]:
    """Return the steps of the cutflow, in the order of the selection."""
    return list(dict.fromkeys(step for sample in document.samples.values() for step in sample.cutflow))


def expected(document: Document) -> tuple[float, float]:
    """Return the events expected from simulation, and their statistical uncertainty."""
    simulation = [counts for category, counts in document.categories.items() if category != "data"]
    return math.fsum(c.yield_ for c in simulation), math.sqrt(math.fsum(c.yield_error**2 for c in simulation))


def label(category: str, document: Document) -> Markup:
    """Return a category's label as HTML, converted from the release's TeX."""
    known = document.known_release
    tex = next((c.label for c in known.categories if c.name == category), category) if known else category
    tex = tex.replace("$", "").replace(r"\,", " ").replace(r"\to ", "→")
    text = str(escape(re.sub(r"\\bar\{(.)\}", "\\1\N{COMBINING MACRON}", tex)))
    text = re.sub(r"\^\{(.*?)\}", r"\1", text)
    return Markup(re.sub(r"_(\w)", r"<sub>\1</sub>", text))  # noqa: S704  escaped two lines above


def mass(document: Document) -> tuple[float, float | None] | None:
    """Return the measured mass of the Higgs boson and its uncertainty, in GeV; None if it was not measured."""
    measured = (document.fit or {}).get("mass")
    if not isinstance(measured, dict) or not isinstance(value := measured.get("value_gev"), int | float):
        return None
    error = measured.get("error_gev")
    return value, error if isinstance(error, int | float) else None


def fit_numbers(fit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the numbers of a fit with their labels."""
    return [(fit_name(name), setting(value)) for name, value in fit.items() if _is_plain(value)]


def fit_name(name: str) -> str:
    """Return the label of a number of the fit."""
    return FIT_NAMES.get(name, name.replace("mc_statistics[", "MC statistics, bin [").replace("_", " "))


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
            rows = [(row, [setting(entry.get(column)) for column in columns]) for row, entry in part.items()]
            tables.append(Table(heading, columns, rows))
        else:
            plain = [(row, [setting(value)]) for row, value in part.items() if _is_plain(value) and value is not None]
            if plain:
                tables.append(Table(heading, ["value"], plain))
            tables += fit_tables(part, heading)
    return tables


def data_from(document: Document) -> str:
    """Return where a run's data come from."""
    given = document.settings.get("data")
    return str(given) if given else "generated on this machine" if document.is_toy else "the addresses of the release"


def title(run_id: str, run: LiveRun | None, document: Document) -> str:
    """Return the title of a run's page: TOY, INCOMPLETE or FAILED, the percentage analysed, and the run id."""
    labels = ["TOY"] if document.is_toy else []
    if run is None:
        labels += [] if document.complete else ["INCOMPLETE"]
    elif run.state == "failed":
        labels.append("FAILED")
    else:
        labels += ["INCOMPLETE"] if document.problems else []
    if run is not None and not run.has_failed and run.total_events:
        labels.append(f"{100 * run.stages[-1].events // run.total_events} %")
    return " – ".join([*labels, run_id])


def sum_of(histogram: Mapping[str, Any] | None, category: str) -> float | None:
    """Return the events of a category in a histogram; None if the histogram does not have them."""
    part = (histogram or {}).get(category)
    values = part.get("values") if isinstance(part, dict) else None
    return math.fsum(values) if are_numbers(values) else None


def are_numbers(values: object) -> TypeGuard[list[float]]:
    """Return True for a list of numbers that is not empty."""
    return isinstance(values, list) and bool(values) and all(isinstance(value, int | float) for value in values)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
