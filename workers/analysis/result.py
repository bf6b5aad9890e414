"""The result document of a run, which is stored as result.json, from its partial histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from common.releases import Release, Sample
from physics import RELEASES
from workers.analysis.histograms import FINE, M4L, M4L_FINE, PublishedSum, axes, empty, split
from workers.analysis.statistics.workspace import NoFit, workspace_of
from workers.analysis.store import PartialSums, Run, Store

#: The window around the Higgs boson's mass, in GeV: three bins around 125.
WINDOW_GEV = (115.0, 130.0)
#: The relative uncertainty of the background in the HZZAnalysis notebook.
BACKGROUND_UNCERTAINTY = 0.3

_EMPTY_SAMPLE = {"events_read": 0, "events_selected": 0, "yield": 0.0, "yield_error": 0.0}


def result_of(run: Run, store: Store, finished: float, *, final: bool) -> dict[str, Any]:
    """Return the result document of a run: the sums of its chunks, added in the order of the chunks.

    Times are in seconds since 1970. If the run is not over (``final`` is False), yields
    are plain sums, the problems are those so far, and variations and the finely binned
    m4l are left out.

    The document has no ``fit`` yet. Its ``workspace`` is the model and data to fit, or None
    if there can be no fit; then ``fit_problem`` says why.
    """
    release = RELEASES[run.settings.release]
    samples = release.in_order(run.settings.samples)
    documents, sums = {}, {}
    for sample in samples:
        documents[sample.name], sums[sample.name] = _sample(
            release, sample, store.partials(run.run_id, sample.name), final=final
        )
    problems = store.problems(run.run_id)
    by_category = {
        category.name: [sample.name for sample in samples if sample.category == category.name]
        for category in release.categories
    }
    present = {category: names for category, names in by_category.items() if names}
    histograms: dict[str, Any] = {name: {"edges": axis.edges.tolist()} for name, axis in axes(release).items()}
    variations: dict[str, Any] = {}
    fine: dict[str, Any] = {"edges": M4L_FINE.edges.tolist()}
    known = {**histograms, FINE: fine}
    for category, names in present.items():
        total = np.sum([sums[name] for name in names], axis=0)
        for name, (values, variances) in split(total, release, category).items():
            contents = known[name] if name in known else variations.setdefault(name, {})
            contents[category] = {"values": values.tolist(), "variances": variances.tolist()}
    seconds = finished - run.submitted
    events = sum(document["events_read"] for document in documents.values())
    result = {
        "run_id": run.run_id,
        "release": release.name,
        "title": release.title,
        "toy": release.toy,
        "complete": final and not problems,
        "problems": problems,
        "settings": run.settings.to_result(toy=release.toy),
        "samples": documents,
        "categories": {
            category: {
                "events_selected": sum(documents[name]["events_selected"] for name in names),
                "yield": math.fsum(documents[name]["yield"] for name in names),
                "yield_error": math.sqrt(math.fsum(documents[name]["yield_error"] ** 2 for name in names)),
            }
            for category, names in present.items()
        },
        "histograms": histograms,
        "variations": variations if final else {},
        FINE: fine if final else None,
        "window": _window(histograms["m4l"]),
        "fit": None,
        "fit_problem": None,
        "workspace": None,
        "timing": {
            "submitted": _iso(run.submitted),
            "finished": _iso(finished),
            "seconds": seconds,
            "events_per_second": events / seconds if seconds > 0 else None,
        },
    }
    try:
        if not result["complete"]:
            raise NoFit("the run is not complete" if final else "the run is under way")
        result["workspace"] = workspace_of(result)
    except NoFit as reason:
        result["fit_problem"] = str(reason)
    return result


def with_fit(
    result: Mapping[str, Any], fit: Mapping[str, Any] | None, problem: str | None, run: Run, finished: float
) -> dict[str, Any]:
    """Return a final document with its fit, or the reason why there is none; ``finished`` in seconds since 1970.

    The events per second do not include the time of the fit.
    """
    seconds = finished - run.submitted
    timing = {**result["timing"], "finished": _iso(finished), "seconds": seconds}
    timing["fit_seconds"] = seconds - result["timing"]["seconds"]
    return {**result, "fit": fit, "fit_problem": problem, "timing": timing}


def _sample(
    release: Release, sample: Sample, partials: Iterable[PartialSums], *, final: bool
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Return a sample's part of the document, and the sums of its histograms."""
    cutflow = dict.fromkeys(release.steps, 0)
    sums = empty(release, sample.category)
    published = PublishedSum()
    sum_of_weights = variance = 0.0
    for partial in partials:
        for step, events in partial.cutflow.items():
            cutflow[step] += events
        sums += partial.sums
        in_float64 = partial.weights.astype(np.float64)
        sum_of_weights += float(in_float64.sum())
        variance += float((in_float64 * in_float64).sum())
        if final:
            published.add(partial.weights)
    selected = cutflow[release.steps[-1]]
    if sample.is_data:
        sum_of_weights = variance = float(selected)
    document = {
        "category": sample.category,
        "events_read": cutflow["read"],
        "events_selected": selected,
        "yield": published.total if final and not sample.is_data else sum_of_weights,
        "yield_error": math.sqrt(variance),
        "sum_of_weights": sum_of_weights,
        "cutflow": cutflow,
    }
    return document, sums


def _window(m4l: dict[str, Any]) -> dict[str, Any]:
    """Return the expected events from 115 to 130 GeV, and the notebook's significance N/√(B + 0.3·B²) with N = S + B.

    The significance is None if no background is expected.
    """
    edges = M4L.edges[:-1]
    inside = (edges >= WINDOW_GEV[0]) & (edges < WINDOW_GEV[1])

    def expected(category: str) -> float:
        return math.fsum(np.asarray(m4l[category]["values"])[inside]) if category in m4l else 0.0

    background = math.fsum(expected(category) for category in m4l if category not in ("edges", "data", "signal"))
    total = background + expected("signal")
    variance = background + BACKGROUND_UNCERTAINTY * background**2
    return {
        "low": WINDOW_GEV[0],
        "high": WINDOW_GEV[1],
        "n_signal_plus_background": total,
        "n_background": background,
        "significance": total / math.sqrt(variance) if background > 0 else None,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
