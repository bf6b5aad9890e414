"""The pictures and other files of a result: their order, captions, words for who cannot see them, media types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.visualisation.archive import File
from workers.visualisation.page.document import Document
from workers.visualisation.page.views import CHANNELS, are_numbers, sum_of
from workers.visualisation.page.wording import number

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
    sums = {category: total for category in document.categories if (total := sum_of(histogram, category)) is not None}
    edges = (histogram or {}).get("edges")
    if not sums or not are_numbers(edges):
        return text
    parts = [f"{'data' if name == 'data' else name} {number(total)}" for name, total in sums.items()]
    return f"{text}: histogram from {edges[0]:g} to {edges[-1]:g} GeV; events in it: {', '.join(parts)}"
