"""The files of a result: the document, each histogram as png and pdf, and all histograms for ROOT."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import hist
import numpy as np
import uproot
from matplotlib.figure import Figure

from workers.visualisation.plots import TOY_TITLE, is_toy, m4l_figure, read_histogram, result_release, style


def result_files(result: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a result folder by name: result.json, histograms.root, and a png and a pdf per histogram.

    The same result gives the same bytes, but for histograms.root, in which
    ROOT's format keeps the time of writing and a unique id. Raises MessageError
    for a histogram that is not sound, and ValueError for a number that JSON has not.
    """
    document = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
    files = {"result.json": (document + "\n").encode()}
    for name in result["histograms"]:
        figure = m4l_figure(result, name)
        files[f"{name}.png"] = rendered(figure, "png")
        files[f"{name}.pdf"] = rendered(figure, "pdf")
    files["histograms.root"] = root_file(result)
    return files


def rendered(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """The figure as the bytes of a ``png`` or ``pdf`` file, without the time of drawing."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def root_file(result: Mapping[str, Any]) -> bytes:
    """A ROOT file with a directory per histogram and in it a TH1D per category, variances in fSumw2.

    Titles are the catalogue's labels as ROOT's TLatex, marked for a toy.
    """
    labels = {category.name: _tlatex(category.label) for category in result_release(result).categories}
    buffer = _KeptOpen()
    with uproot.recreate(buffer) as file:
        for name in result["histograms"]:
            edges, contents = read_histogram(result, name)
            for category, content in contents.items():
                title = f"{TOY_TITLE}: {labels[category]}" if is_toy(result) else labels[category]
                histogram = hist.Hist(
                    hist.axis.Variable(edges, name="m4l", label="m_{4l} [GeV]"),
                    storage=hist.storage.Weight(),
                    name=title,  # uproot writes a histogram's name as the title of the TH1D
                )
                histogram[...] = np.stack([content.values, content.variances], axis=-1)
                file[f"{name}/{category}"] = histogram
        return buffer.getvalue()  # whole after each assignment; closing the file closes the buffer


class _KeptOpen(io.BytesIO):
    """A buffer that can be read after uproot has closed the file it wrote there."""

    def close(self) -> None:
        """Keep the content."""


def _tlatex(label: str) -> str:
    """A catalogue's label, written in matplotlib's mathtext, in ROOT's dialect of TeX."""
    return label.replace(r"\,", " ").replace("$", "").replace("\\", "#")
