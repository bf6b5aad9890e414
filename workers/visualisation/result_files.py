"""The files of a result: the document, each figure as png and pdf, the workspace, and the histograms for ROOT."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import hist
import numpy as np
import uproot

from common.messages import TIMELINE, Software, decompress
from workers.visualisation.plots.histograms import TOY_TITLE, is_toy, read_histogram, result_analysis
from workers.visualisation.plots.pool import Drawings, drawn

log = logging.getLogger(__name__)

#: The figures of a fit, in the order of the page.
FIT_FIGURES = tuple(f"fit_{name}" for name in ("prefit", "postfit", "pulls", "correlations", "likelihood", "limits"))


def figures_of(result: Mapping[str, Any]) -> list[str]:
    """Return the figures of a result folder: every histogram, and those of the fit. A run without plots has none."""
    return [*result["histograms"], *fit_figures(result)] if result["settings"].get("plots", True) else []


def files_without_figures(result: Mapping[str, Any], timeline: bytes = b"") -> dict[str, bytes]:
    """Return the files that depend on no figure.

    They are histograms.root, timeline.json from the compressed ``timeline`` unless it is empty, and workspace.json if
    the result has one. Raises MessageError if a histogram is not valid.
    """
    files = {"histograms.root": root_file(result)}
    if timeline:
        files[TIMELINE] = decompress(timeline)
    if result.get("workspace") is not None:
        files["workspace.json"] = _json(result["workspace"])
    return files


def result_files(result: Mapping[str, Any], others: Mapping[str, bytes], drawings: Drawings) -> dict[str, bytes]:
    """Return the files of a result folder by name: result.json, the figures as png and pdf, and the ``others``.

    Figures that cannot be drawn are named in the problems of result.json; the run is as complete as before, because
    every event is in its numbers. The same result gives the same bytes, except for histograms.root: ROOT's format
    contains the time of writing and a unique id. Raises MessageError if a histogram is not valid, and ValueError for a
    number that is not finite, which JSON cannot represent.
    """
    figures, problems = drawn(drawings)
    for problem in problems:
        log.error("run %s: %s", result["run_id"], problem)
    result = {**result, "problems": [*result["problems"], *problems]}
    return {"result.json": _json(result), **figures, **others}


def with_visualisation(result: Mapping[str, Any], software: Software) -> dict[str, Any]:
    """Return a result with the visualisation's packages in ``provenance.packages``, which has those of the others."""
    provenance = result.get("provenance", {})
    packages = dict(provenance.get("packages", {}))
    for name, version in software.packages.items():
        others = packages.setdefault(name, version)
        if others != version:
            by_service = others if isinstance(others, dict) else {"other services": others}
            packages[name] = {**by_service, "visualisation": version}
    return {**result, "provenance": {**provenance, "packages": packages}}


def fit_figures(result: Mapping[str, Any]) -> list[str]:
    """Return the figures of a result's fit, in the order of the page; empty without a fit.

    A fit without an upper limit has no figure of limits, one without a measured peak none of that.
    """
    fit, peak = result.get("fit"), result_analysis(result).model.peak
    if not fit:
        return []
    figures = FIT_FIGURES if "limit_scan" in fit else FIT_FIGURES[:-1]
    return [*figures, *([f"fit_{peak.name}"] if peak is not None and peak.name in fit else [])]


def root_file(result: Mapping[str, Any]) -> bytes:
    """Return a ROOT file with a directory per histogram and in it a TH1D per category, with the variances in fSumw2.

    A variation also has a directory: ``VARIATION/CATEGORY`` beside
    ``HISTOGRAM/CATEGORY``, where cabinetry reads it with the InputPath
    ``histograms.root:{VariationPath}/{SamplePath}``. ``HISTOGRAM_fine`` is the
    histogram of the measurement of the peak. Titles are the release's labels as ROOT's TLatex,
    with a prefix for a toy.
    """
    analysis = result_analysis(result)
    model = analysis.model
    labels = {category.name: _tlatex(category.label) for category in analysis.categories}
    edges_of_fitted = result["histograms"].get(model.observable, {}).get("edges")
    varied = {name: {"edges": edges_of_fitted, **of} for name, of in result.get("variations", {}).items()}
    if result.get(model.fine):
        varied[model.fine] = result[model.fine]
    everything = {**result, "histograms": {**result["histograms"], **varied}}
    buffer = _Buffer()
    with uproot.recreate(buffer) as file:
        for name in everything["histograms"]:
            observable = analysis.fitted if name in varied else analysis.histograms[name]
            edges, contents = read_histogram(everything, name)
            for category, content in contents.items():
                title = f"{TOY_TITLE}: {labels[category]}" if is_toy(result) else labels[category]
                histogram = hist.Hist(
                    hist.axis.Variable(edges, name=observable.name, label=_tlatex(observable.axis_label)),
                    storage=hist.storage.Weight(),
                    name=title,  # uproot writes a histogram's name as the title of the TH1D
                )
                histogram[...] = np.stack([content.values, content.variances], axis=-1)
                file[f"{name}/{category}"] = histogram
    return buffer.getvalue()


class _Buffer(io.BytesIO):
    """A buffer that can be read after uproot has closed the file."""

    def close(self) -> None:
        """Keep the content."""


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _tlatex(label: str) -> str:
    """Translate a label from mathtext to ROOT's TLatex, which has no ℓ."""
    for mathtext, tlatex in ((r"\,", " "), (r"\ell", "l"), (r"\mathrm{T}", "T"), ("$", ""), ("\\", "#")):
        label = label.replace(mathtext, tlatex)
    return label
