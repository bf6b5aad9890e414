"""Captions, alternative texts, media types and the order of the files of a result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.visualisation.archive import File
from workers.visualisation.page.document import Document
from workers.visualisation.page.formatting import number
from workers.visualisation.page.views import CHANNELS, are_numbers, sum_of
from workers.visualisation.result_files import FIT_FIGURES

#: Captions by a pattern of the file's name; the first match is used.
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
_DESCRIPTIONS = {
    "result.json": "the result, for programs",
    "histograms.root": "the histograms, for ROOT and uproot",
    "workspace.json": "the statistical model and its data, for pyhf",
}


@dataclass(frozen=True)
class Plot:
    """A plot of a result: its file, caption and alternative text, and its files in other formats."""

    file: str
    caption: str
    alternative: str
    other_formats: tuple[File, ...]
    is_main: bool


def media_type(name: str) -> str:
    """Return the media type of a file."""
    return _MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


def is_displayed(name: str) -> bool:
    """Return True if a browser may display the file; other files can only be downloaded."""
    return media_type(name) != "application/octet-stream"


def description(name: str) -> str:
    """Return a description of a file, empty if there is none."""
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    return caption(name) if name.endswith((*_IMAGES, "pdf")) else ""


def caption(name: str) -> str:
    """Return the caption of a plot by its file's name."""
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
    """Return the plots of a result in order: m4l, its channels, the other histograms, the fit, other images."""
    by_stem: dict[str, list[File]] = {}
    for file in files:
        by_stem.setdefault(file.name.rpartition(".")[0], []).append(file)
    known = (*document.histograms, *FIT_FIGURES)

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
            found.append(Plot(name, caption(name), alternative(name, document), others, stem == "m4l"))
    return found


def alternative(name: str, document: Document) -> str:
    """Return the alternative text of a plot: its caption, and a histogram's range and sums."""
    histogram = document.histograms.get(name.rpartition(".")[0])
    text = caption(name) + (" (toy, not ATLAS data)" if document.is_toy else "")
    sums = {category: total for category in document.categories if (total := sum_of(histogram, category)) is not None}
    edges = (histogram or {}).get("edges")
    if not sums or not are_numbers(edges):
        return text
    parts = [f"{'data' if name == 'data' else name} {number(total)}" for name, total in sums.items()]
    return f"{text}: histogram from {edges[0]:g} to {edges[-1]:g} GeV; events in it: {', '.join(parts)}"
