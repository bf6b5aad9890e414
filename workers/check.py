"""Check the file of a user's own analysis without a run: import it, and try its functions on events of the demo.

Colours and labels are checked here, because the services that do not draw do not import matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.cbook import is_math_text
from matplotlib.colors import is_color_like
from matplotlib.mathtext import MathTextParser

from common import messages
from common.analyses import Analyses, Analysis, Sample
from common.errors import AnalysisError, DataError, MessageError, SettingsError
from common.messages import Chunk, Events, Selected
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.histograms import fill
from workers.data_loader import reading
from workers.data_processor.service import select

#: The number of simulated events of the demo that is tried.
DEMO_EVENTS = 20_000


@dataclass(frozen=True)
class CheckedRelease:
    """A release of the analysis, the toy release whose events were tried (None: none has its samples), and the outcome.

    ``cutflow`` counts the events after each step; ``mistakes`` says what is wrong.
    """

    release: str
    tried_on: str | None
    samples: tuple[str, ...]
    cutflow: dict[str, int]
    mistakes: tuple[str, ...]


def check(path: Path, cache: Path) -> list[CheckedRelease]:
    """Return what is found for each release of the analysis in a file; the demo is made in ``cache``.

    Raises AnalysisError for a file that cannot be imported or defines no analysis.
    """
    return [_checked(analysis, path, cache) for analysis in ANALYSES.load(path).values()]


def _checked(analysis: Analysis, file: Path, cache: Path) -> CheckedRelease:
    toy, not_drawable = _toy_of(analysis), [f"{file.name}: {mistake}" for mistake in _not_drawable(analysis)]
    if toy is None:
        return CheckedRelease(analysis.release, None, (), {}, tuple(not_drawable))
    analyses = Analyses(toy)
    settings = analyses.resolve(RunSettings(toy.release, analysis=toy.name, demo_events=DEMO_EVENTS))
    cutflow = dict.fromkeys(toy.steps, 0)
    mistakes: dict[str, str] = {}
    samples = tuple(_one_of_each_category(toy))
    for sample in samples:
        try:
            for step, events in _tried(analyses, toy, sample, settings, cache).items():
                cutflow[step] += events
        except (AnalysisError, DataError, MessageError, SettingsError) as error:
            mistakes.setdefault(_without_numbers(str(error)), str(error))
    names = tuple(sample.name for sample in samples)
    return CheckedRelease(analysis.release, toy.release, names, cutflow, (*not_drawable, *mistakes.values()))


def _without_numbers(mistake: str) -> str:
    """A mistake without the numbers that the categories differ in; the place with the line, and names, stay."""
    place, colon, what = mistake.partition(": ")
    return place + colon + re.sub(r"('[^']*')|\d+", r"\1", what)


def _not_drawable(analysis: Analysis) -> Iterator[str]:
    """Yield the colours and labels that matplotlib does not know."""
    for category in analysis.categories:
        if not is_color_like(category.colour):
            yield (
                f"Category {category.name!r}: matplotlib has no colour {category.colour!r}; "
                "write for example 'red' or '#e8483a'"
            )
    model = analysis.model
    labels = [(f"Category {one.name!r}: label", one.label) for one in analysis.categories]
    labels += [(f"Normalisation {one.name!r}: label", one.label) for one in model.normalisations]
    labels += [] if model.scale is None else [(f"ScaleVariation {model.scale.name!r}: label", model.scale.label)]
    labels += [(f"Observable {one.name!r}: label or unit", one.axis_label) for one in analysis.observables]
    labels += [(f"Channel {one.name!r}: label", f"${one.label}$") for one in analysis.channels]
    labels += [("process", f"${analysis.process}$")]
    labels += [] if model.peak is None else [(f"Peak {model.peak.name!r}: symbol", f"${model.peak.symbol}$")]
    parser = MathTextParser("agg")
    for what, label in labels:
        try:
            if is_math_text(label):
                parser.parse(label)
        except ValueError as error:
            yield f"{what} {label!r} is not valid mathtext of matplotlib: {str(error).splitlines()[-1]}"


def _toy_of(analysis: Analysis) -> Analysis | None:
    """Return the analysis itself if it is a toy, else the same analysis of the toy release that has its samples."""
    if analysis.toy:
        return analysis
    for shipped in ANALYSES.values():
        if shipped.toy and shipped.tree == analysis.tree and set(analysis.sample_names) <= set(shipped.sample_names):
            return replace(analysis, release=shipped.release, toy=True, make_file=shipped.make_file)
    return None


def _one_of_each_category(analysis: Analysis) -> Iterator[Sample]:
    for category in analysis.categories:
        yield from [sample for sample in analysis.samples if sample.category == category.name][:1]


def _tried(
    analyses: Analyses, analysis: Analysis, sample: Sample, settings: RunSettings, cache: Path
) -> dict[str, int]:
    """Take the first chunk of a sample through the functions of the analysis and its messages; returns the cutflow."""
    assert analysis.make_file is not None
    path = analysis.make_file(analysis, sample, settings.demo_events, cache / analysis.release)
    bounds = reading.chunk_bounds(path, analysis, sample, settings)
    start, stop = bounds[0], bounds[min(1, len(bounds) - 1)]
    arrays = reading.read(path, analysis, sample, start, stop)
    events, loaded = reading.select(arrays, analysis, sample, settings)
    chunk = Chunk("check", sample.name, start, stop)
    received = messages.decode(Events.kind, Events(chunk, settings, loaded, events).encode(), analyses)
    assert isinstance(received, Events)
    selected, processed = select(received.events, analysis, settings)
    cutflow = {**loaded, **processed}
    received = messages.decode(Selected.kind, Selected(chunk, settings, cutflow, selected).encode(), analyses)
    assert isinstance(received, Selected)
    fill(received.events, analysis, sample.category)
    return cutflow
