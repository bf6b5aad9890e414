"""The files of a result: the document, each figure as png, pdf and svg, the workspace, and all histograms for ROOT."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import hist
import numpy as np
import uproot
from matplotlib.figure import Figure

from workers.visualisation.fit_plots import fit_figures
from workers.visualisation.plots import (
    TOY_TITLE,
    axis_label,
    histogram_figure,
    is_toy,
    read_histogram,
    result_release,
)
from workers.visualisation.rendering import rendered


def result_files(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a result folder by name: result.json, the figures, histograms.root, and workspace.json of a fit.

    Each histogram and each figure of the fit is there as png, pdf and svg. The
    same result gives the same bytes, but for histograms.root, in which ROOT's
    format keeps the time of writing and a unique id. Raises MessageError for a
    histogram that is not sound, and ValueError for a number that JSON has not.
    """
    files = {"result.json": _json(result)}
    figures: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        name: partial(histogram_figure, histogram=name) for name in result["histograms"]
    }
    for name, draw in (figures | fit_figures(result)).items():
        files |= {f"{name}.{kind}": file for kind, file in rendered(draw(result), "png", "pdf", "svg").items()}
    files["histograms.root"] = root_file(result)
    if result.get("workspace") is not None:
        files["workspace.json"] = _json(result["workspace"])
    return files


def root_file(result: Mapping[str, Any]) -> bytes:
    """A ROOT file with a directory per histogram and in it a TH1D per category, variances in fSumw2.

    A variation of m4l has its directory, too: ``m4l_scale_up/zz`` beside
    ``m4l/zz``, where cabinetry looks for it with the InputPath
    ``histograms.root:{VariationPath}/{SamplePath}``; ``m4l_fine`` is what the
    Higgs boson's mass is measured with. Titles are the catalogue's
    labels as ROOT's TLatex, marked for a toy.
    """
    labels = {category.name: _tlatex(category.label) for category in result_release(result).categories}
    edges_of_m4l = result["histograms"].get("m4l", {}).get("edges")
    varied = {name: {"edges": edges_of_m4l, **of} for name, of in result.get("variations", {}).items()}
    if result.get("m4l_fine"):
        varied["m4l_fine"] = result["m4l_fine"]
    everything = {**result, "histograms": {**result["histograms"], **varied}}
    buffer = _KeptOpen()
    with uproot.recreate(buffer) as file:
        for name in everything["histograms"]:
            quantity = "m4l" if name in varied else name
            edges, contents = read_histogram(everything, name)
            for category, content in contents.items():
                title = f"{TOY_TITLE}: {labels[category]}" if is_toy(result) else labels[category]
                histogram = hist.Hist(
                    hist.axis.Variable(edges, name=quantity, label=_tlatex(axis_label(quantity))),
                    storage=hist.storage.Weight(),
                    name=title,  # uproot writes a histogram's name as the title of the TH1D
                )
                histogram[...] = np.stack([content.values, content.variances], axis=-1)
                file[f"{name}/{category}"] = histogram
    return buffer.getvalue()


class _KeptOpen(io.BytesIO):
    """A buffer that can be read after uproot has closed the file it wrote there."""

    def close(self) -> None:
        """Keep the content."""


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _tlatex(label: str) -> str:
    """A label, written in matplotlib's mathtext, in ROOT's dialect of TeX, whose fonts have no ℓ."""
    for ours, roots in ((r"\,", " "), (r"\ell", "l"), (r"\mathrm{T}", "T"), ("$", ""), ("\\", "#")):
        label = label.replace(ours, roots)
    return label
