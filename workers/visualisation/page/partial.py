"""Partial results of runs under way: their documents, and what their plots and figures show.

Data and simulation are not read at the same rate. The simulation is therefore scaled to the fraction of the data that
is read, and the plot says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from common.analyses import Analysis, Role
from common.errors import SettingsError
from physics import ANALYSES
from workers.visualisation.page.document import Document, to_document
from workers.visualisation.page.live import LiveRun


def partial_document(run: LiveRun) -> Document:
    """Return the partial result of a run under way; before its first one, a document with the settings only."""
    document = to_document(run.result or {})
    if document.release or run.settings is None:
        return document
    analysis = ANALYSES.of(run.settings)
    return replace(
        document,
        analysis=analysis.name,
        release=analysis.release,
        settings=run.settings.to_result(toy=analysis.toy),
        provenance={"analysis_sha256": run.settings.analysis_sha256},
    )


def scaled_result(run: LiveRun) -> Mapping[str, Any] | None:
    """Return the partial result with the simulation scaled to the fraction of the data that is read.

    Each simulated sample counts with the yield that is expected of all its events, yield × planned / read; without
    data, or before the first of them is read, it is the whole of it. The histograms of a category are multiplied by
    one factor. ``progress`` has the percentage of the events that are analysed, None if not all files are open, what
    was done in words, and the number of simulated samples that are not read yet. Returns None without a partial
    result, and the result itself if it is not valid, its analysis is not known, or it is the final one.
    """
    if run.result is None or run.is_drawing:
        return run.result
    document = to_document(run.result)
    try:
        analysis = ANALYSES.of_result(run.result)
        read = {name: sample.events_read for name, sample in document.samples.items()}
        data = [name for name, sample in document.samples.items() if sample.category in analysis.with_role("data")]
        simulated = [name for name in read if name not in data]
        of_data = _fraction(sum(read[name] for name in data), sum(run.planned.get(name, 0) for name in data))
        factors = {}
        for category in dict.fromkeys(document.samples[name].category for name in simulated):
            members = [name for name in simulated if document.samples[name].category == category]
            so_far = math.fsum(document.samples[name].yield_ for name in members)
            expected = math.fsum(
                document.samples[name].yield_ / fraction
                for name in members
                if (fraction := _fraction(read[name], run.planned.get(name, 0)))
            )
            factors[category] = (of_data or 1.0) * expected / so_far if so_far > 0 and expected > 0 else 1.0
        histograms = {
            name: {part: _times(contents, factors.get(part, 1.0)) for part, contents in histogram.items()}
            for name, histogram in run.result["histograms"].items()
        }
        categories = {
            name: {**counts, **{key: counts[key] * factors.get(name, 1.0) for key in ("yield", "yield_error")}}
            for name, counts in run.result["categories"].items()
        }
        window = _window(run.result["window"], histograms[analysis.model.observable], analysis)
    except (SettingsError, KeyError, TypeError, ValueError, AttributeError):
        return run.result
    unread = sum(not read[name] for name in simulated)
    words = []
    if simulated and of_data in (0.0, 1.0):
        words.append(f"{'all data are read; ' if of_data else ''}simulation is scaled to the whole run")
    elif simulated:
        words.append(f"simulation is scaled to the {100 * of_data:.0f} % of the data that are read")
    if unread:
        words.append(f"{unread} simulated sample{'' if unread == 1 else 's'} not read yet")
    return {
        **run.result,
        "histograms": histograms,
        "categories": categories,
        "window": window,
        "progress": {
            "percent": run.percent,
            "note": "; ".join(words) or "the events that are read so far",
            "unread": unread,
        },
    }


def _fraction(read: int, planned: int) -> float:
    return min(1.0, read / planned) if planned else 0.0


def _times(contents: Any, factor: float) -> Any:
    """Return the contents of a category multiplied by a factor; edges are returned as they are."""
    if not isinstance(contents, dict) or factor == 1.0:
        return contents
    return {
        "values": [factor * value for value in contents["values"]],
        "variances": [factor**2 * variance for variance in contents["variances"]],
    }


def _window(window: Mapping[str, Any], histogram: Mapping[str, Any], analysis: Analysis) -> dict[str, Any]:
    """Return the window with the expected events of a scaled histogram, and without significances."""
    inside = analysis.fitted.axis.bins_between(window["low"], window["high"]).nonzero()[0]
    found: dict[str, Any] = {**window, "significance": None, "significance_s_b": None}
    roles: dict[str, tuple[Role, ...]] = {
        "n_signal": ("signal",),
        "n_background": ("background",),
        "n_signal_plus_background": ("signal", "background"),
    }
    for name, wanted in roles.items():
        parts = [histogram[one] for role in wanted for one in analysis.with_role(role) if one in histogram]
        if not parts:
            continue
        found[name] = math.fsum(part["values"][index] for part in parts for index in inside)
        found[f"{name}_error"] = math.sqrt(math.fsum(part["variances"][index] for part in parts for index in inside))
    return found
