"""The result document of a run, which is stored as result.json, from its partial histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from common.analyses import Analysis, Role, Sample
from common.messages import FileIdentity
from common.rounding import with_error
from common.settings import RunSettings
from physics import ANALYSES
from workers.analysis.histograms import PublishedSum, empty, split
from workers.analysis.provenance import provenance, version_warnings
from workers.analysis.statistics.workspace import NoFit, workspace_of
from workers.analysis.store import PartialSums, Run, Store
from workers.analysis.timeline import Timeline

#: The relative uncertainty of the background in the HZZAnalysis notebook.
BACKGROUND_UNCERTAINTY = 0.3

#: A larger relative uncertainty of the background in the window, from the number of simulated events, is a warning.
MAX_WINDOW_UNCERTAINTY = 0.25

_EMPTY_SAMPLE = {"events_read": 0, "events_selected": 0, "yield": 0.0, "yield_error": 0.0}


def result_of(run: Run, store: Store, finished: float, *, final: bool) -> dict[str, Any]:
    """Return the result document of a run: the sums of its chunks, added in the order of the chunks.

    Times are in seconds since 1970, by the clock of this service except for the time of the
    submission; the duration is that since the plan arrived. If the run is not over (``final`` is False), yields
    are plain sums, the problems are those so far, and variations, the finely binned
    observable and what the chunks waited for are left out.

    The document has no ``fit`` yet. Its ``workspace`` is the model and data to fit, or None
    if there can be no fit; then ``fit_problem`` says why.
    """
    analysis = ANALYSES.of(run.settings)
    samples = analysis.in_order(run.settings.samples)
    documents, sums = {}, {}
    for sample in samples:
        documents[sample.name], sums[sample.name] = _sample(
            analysis, sample, store.partials(run.run_id, sample.name), final=final
        )
    files, software = store.files(run.run_id), store.software(run.run_id)
    timeline = Timeline(run.run_id, list(store.spans(run.run_id)) if final else [])
    problems = store.problems(run.run_id)
    by_category = {
        category.name: [sample.name for sample in samples if sample.category == category.name]
        for category in analysis.categories
    }
    present = {category: names for category, names in by_category.items() if names}
    histograms: dict[str, Any] = {name: {"edges": one.axis.edges.tolist()} for name, one in analysis.histograms.items()}
    variations: dict[str, Any] = {}
    peak = analysis.model.peak
    fine: dict[str, Any] = {} if peak is None else {analysis.model.fine: {"edges": peak.axis.edges.tolist()}}
    known = {**histograms, **fine}
    for category, names in present.items():
        total = np.sum([sums[name] for name in names], axis=0)
        for name, (values, variances) in split(total, analysis, category).items():
            contents = known[name] if name in known else variations.setdefault(name, {})
            contents[category] = {"values": values.tolist(), "variances": variances.tolist()}
    window = _window(histograms[analysis.model.observable], analysis)
    seconds = finished - run.begun
    events = sum(document["events_read"] for document in documents.values())
    result = {
        "run_id": run.run_id,
        "analysis": analysis.name,
        "release": analysis.release,
        "title": analysis.title,
        "toy": analysis.toy,
        "complete": final and not problems,
        "problems": problems,
        "warnings": [
            *_unconfirmed_files(run.settings, files),
            *version_warnings(software),
            *_warnings(analysis, run.settings, documents, histograms, whole=not problems),
            *(_few_events(window) if analysis.model.is_search else []),
        ]
        if final
        else [],
        "settings": run.settings.to_result(toy=analysis.toy),
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
        **(fine if final else dict.fromkeys(fine)),
        "window": window,
        "fit": None,
        "fit_problem": None,
        "workspace": None,
        "timing": {
            "submitted": _iso(run.submitted),
            "finished": _iso(finished),
            "seconds": seconds,
            "events_per_second": events / seconds if seconds > 0 else None,
            "waits": timeline.waits(),
        },
        "provenance": provenance(software, timeline.replicas(), files, run.settings.analysis_sha256),
    }
    try:
        if not result["complete"]:
            raise NoFit("the run is not complete" if final else "the run is under way")
        unscaled = scaling_problem(analysis, run.settings)
        if unscaled is not None:
            raise NoFit(unscaled)
        result["workspace"] = workspace_of(result)
    except NoFit as reason:
        result["fit_problem"] = str(reason)
    return result


def with_fit(
    result: Mapping[str, Any], fit: Mapping[str, Any] | None, problem: str | None, run: Run, finished: float
) -> dict[str, Any]:
    """Return a final document with its fit, or the reason why there is none; ``finished`` in seconds since 1970.

    A fit that ends at a bound of the signal strength adds a warning. The events per second do not include the time of
    the fit.
    """
    warnings = list(result["warnings"])
    if fit is not None and fit["signal_strength_error"] is None:
        warnings.append(
            f"the signal strength is fitted at {fit['signal_strength']:.3g}, an end of the range in which the model is "
            "valid: this is no measurement"
        )
    seconds = finished - run.begun
    timing = {**result["timing"], "finished": _iso(finished), "seconds": seconds}
    timing["fit_seconds"] = seconds - result["timing"]["seconds"]
    return {**result, "warnings": warnings, "fit": fit, "fit_problem": problem, "timing": timing}


def _sample(
    analysis: Analysis, sample: Sample, partials: Iterable[PartialSums], *, final: bool
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Return a sample's part of the document, and the sums of its histograms."""
    cutflow = dict.fromkeys(analysis.steps, 0)
    sums = empty(analysis, sample.category)
    published = PublishedSum(analysis.events["weight"].dtype)
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
    selected = cutflow[analysis.steps[-1]]
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


def _window(histogram: dict[str, Any], analysis: Analysis) -> dict[str, Any]:
    """Return the events in the model's window, and what the HZZAnalysis notebook calls significance.

    That is N/√(B + 0.3·B²) with N = S + B; ``significance_s_b`` is S/√B. Both are None if no background is expected.
    The errors are statistical: the roots of the sums of squared weights. Numbers of what the run has no sample of are
    None.
    """
    low, high = analysis.model.window
    inside = analysis.fitted.axis.bins_between(low, high)

    def of(*roles: Role) -> list[Mapping[str, Any]]:
        return [histogram[name] for role in roles for name in analysis.with_role(role) if name in histogram]

    def events(role: Role, what: str = "values") -> float:
        return math.fsum(math.fsum(np.asarray(contents[what])[inside]) for contents in of(role))

    background, signal = events("background"), events("signal")
    total = background + signal
    variance = background + BACKGROUND_UNCERTAINTY * background**2
    expected: dict[str, float | None] = {}
    roles: dict[str, tuple[Role, ...]] = {
        "n_signal": ("signal",),
        "n_background": ("background",),
        "n_signal_plus_background": ("background", "signal"),
    }
    for name, wanted in roles.items():
        are_in_run = bool(of(*wanted))
        expected[name] = sum(map(events, wanted)) if are_in_run else None
        error = math.sqrt(sum(events(role, "variances") for role in wanted))
        expected[f"{name}_error"] = error if are_in_run else None
    return {
        "low": low,
        "high": high,
        "unit": analysis.fitted.unit,
        "n_data": round(events("data")) if of("data") else None,
        **expected,
        "significance": total / math.sqrt(variance) if background > 0 else None,
        "significance_s_b": signal / math.sqrt(background) if background > 0 else None,
    }


def _warnings(
    analysis: Analysis,
    settings: RunSettings,
    documents: Mapping[str, Any],
    histograms: Mapping[str, Any],
    *,
    whole: bool,
) -> list[str]:
    """Return what a reader of the numbers has to know: what is missing, empty, not the release's, or scaled by hand.

    The reasons that concern the whole run come first, then those of categories, histograms and samples. The
    numbers of entries are compared with the release's if the run was read as a ``whole``.
    """
    warnings = []
    missing = scaling_problem(analysis, settings)
    if missing is not None:
        warnings.append(missing)
    selected = sum(document["events_selected"] for document in documents.values())
    if not selected:
        warnings.append("the run selects no event")
    other_files = _other_files(analysis, settings, documents) if whole and not analysis.toy else []
    if other_files:
        warnings.append(f"files that differ from the release's in their number of entries: {_names(other_files)}")
    weightless = _weightless(documents)
    if weightless:
        warnings.append(f"all selected events of {_names(weightless)} have weight 0")
    warnings += _category_warnings(analysis, documents, histograms[analysis.model.observable])
    empty_ones = [name for name in analysis.histograms if all(map(_is_empty, _contents(histograms[name])))]
    if selected and empty_ones:
        warnings.append(f"no event is in {'histogram' if len(empty_ones) == 1 else 'histograms'} {_names(empty_ones)}")
    for name, document in documents.items():
        before = None
        for step, events in document["cutflow"].items():
            if not events:
                none = "no event was read" if before is None else f"none of its {before:,} events passes {step}"
                warnings.append(f"{name}: {none}")
                break
            before = events
    return warnings


def _category_warnings(analysis: Analysis, documents: Mapping[str, Any], fitted: Mapping[str, Any]) -> list[str]:
    """Return which categories have no sample, lack some, or have no event in all or in the ``fitted`` histogram."""
    warnings = []
    selected = {name for name, document in documents.items() if document["events_selected"]}
    weightless = _weightless(documents)
    for category in analysis.categories:
        members = [sample.name for sample in analysis.samples if sample.category == category.name]
        present = [name for name in members if name in documents]
        if not present:
            is_data = category.role == "data"
            warnings.append("the run has no data" if is_data else f"category {category.name} has no sample in this run")
            continue
        left_out = [name for name in members if name not in documents]
        if left_out and category.role != "data":
            warnings.append(f"category {category.name} lacks {_names(left_out)}")
        of_category = selected.intersection(present)
        if not of_category:
            if selected:
                warnings.append(f"category {category.name} has no selected event")
        elif _is_empty(fitted[category.name]) and not of_category.issubset(weightless):
            warnings.append(f"category {category.name} has no event in the range of histogram {analysis.fitted.name}")
    return warnings


def _few_events(window: Mapping[str, Any]) -> list[str]:
    """Return a warning if the simulation has too few events for the background in the window, even if one is fitted.

    A bin in which a category has no event by chance has no uncertainty in the fit, either.
    """
    background, error = window["n_background"], window["n_background_error"]
    if background is None or error <= MAX_WINDOW_UNCERTAINTY * background:
        return []
    where = f"{window['low']:g} to {window['high']:g} {window['unit']}".rstrip()
    return [
        f"the simulation has too few background events in {where}, where {with_error(background, error)} are "
        "expected: no significance can be trusted"
    ]


def _other_files(analysis: Analysis, settings: RunSettings, documents: Mapping[str, Any]) -> list[str]:
    """Return the samples of which another number of entries was read than the release has, with both numbers."""
    numbers = [
        (sample.name, documents[sample.name]["events_read"], settings.entries_of(sample.entries))
        for sample in analysis.in_order(settings.samples)
        if sample.entries is not None
    ]
    return [f"{name} ({read:,} instead of {expected:,})" for name, read, expected in numbers if read != expected]


def _weightless(documents: Mapping[str, Any]) -> list[str]:
    """Return the samples whose selected events all have weight 0, so that they do not count."""
    return [name for name, one in documents.items() if one["events_selected"] and not one["yield_error"]]


def _unconfirmed_files(settings: RunSettings, files: Mapping[str, FileIdentity]) -> list[str]:
    """Return a warning that names the samples whose files may be older than those of their server, if there are any."""
    names = [name for name in settings.samples if name in files and not files[name].is_confirmed]
    if not names:
        return []
    return [
        f"{_names(names)}: the server of DATA could not be reached, and may have other files by now; "
        "copies in the cache were read"
    ]


def _contents(histogram: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [contents for name, contents in histogram.items() if name != "edges"]


def _is_empty(contents: Mapping[str, Any]) -> bool:
    """Return True if no event was filled: weights may cancel, but their squares do not."""
    return not any(contents["variances"])


def scaling_problem(analysis: Analysis, settings: RunSettings) -> str | None:
    """Return why the simulation of a run with data is not scaled to the data's luminosity; None if it is."""
    whole, part = analysis.periods_of(settings.samples)
    if not whole and not part:
        return None
    if part:
        names = [period.name for period in part]
        return (
            f"the run has a part of the data of {_names(names)}, whose luminosity is not known; "
            f"simulation is scaled to {settings.luminosity_ifb:g} fb⁻¹"
        )
    known = analysis.lumi_of(settings.samples)
    if math.isclose(known, settings.luminosity_ifb, rel_tol=1e-9):
        return None
    return f"simulation is scaled to {settings.luminosity_ifb:g} fb⁻¹ (LUMI), but the data have {known:g} fb⁻¹"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
