"""Read and check the histograms of a result document, and label their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.analyses import Analysis, Category
from common.errors import MessageError
from physics import ANALYSES

Array = NDArray[np.float64]

#: The most characters of sample names in an entry of a legend.
LEGEND_LENGTH = 28
TOY_TITLE = "TOY demo – not ATLAS data"


@dataclass(frozen=True)
class Contents:
    """One category in one histogram: sums of weights and sums of squared weights, shape (bins,)."""

    values: Array
    variances: Array


def result_analysis(result: Mapping[str, Any]) -> Analysis:
    """Return the release of a result; raises SettingsError if there is none with its name."""
    return ANALYSES.of_result(result)


def is_toy(result: Mapping[str, Any]) -> bool:
    """Return True if the result or its release says that the events are simulated toys, data included."""
    return bool(result["toy"]) or result_analysis(result).toy


def simulated(result: Mapping[str, Any]) -> Sequence[Category]:
    """Return the simulated categories of the result's release, in stacking order."""
    return [category for category in result_analysis(result).categories if category.role != "data"]


def legend_name(result: Mapping[str, Any], category: Category) -> str:
    """Return the name of a category in a legend, which names no sample that the run does not have.

    A category of which samples are missing is named by the samples that it has or, where those do
    not fit, by its label with the number of samples.
    """
    members = [sample.name for sample in result_analysis(result).samples if sample.category == category.name]
    present = [name for name in members if name in result.get("samples", {})]
    if not present or len(present) == len(members):
        return category.label
    names = ", ".join(present)
    return names if len(names) <= LEGEND_LENGTH else f"{category.label}\n({len(present)} of {len(members)} samples)"


def read_histogram(result: Mapping[str, Any], name: str) -> tuple[Array, dict[str, Contents]]:
    """Return the edges, shape (bins + 1,), and the contents by category, in the release's order.

    Raises MessageError, naming the histogram, if it is absent, has the wrong shape or a number that is
    not finite, if its edges do not increase, if a variance is negative, or if data are not whole counts.
    """
    where = f"run {result.get('run_id')}: histogram {name!r}"
    if name not in result["histograms"]:
        raise MessageError(f"{where} is not in the result, which has {', '.join(result['histograms'])}")

    def numbers(of: Mapping[str, Any], key: str, size: int | None, what: str) -> Array:
        try:
            array = np.asarray(of[key], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise MessageError(f"{where}: {what} are absent or not numbers") from None
        if array.ndim != 1 or (size is not None and len(array) != size):
            raise MessageError(f"{where}: {what} have shape {array.shape}; expected ({size},)")
        if not np.isfinite(array).all():
            raise MessageError(f"{where}: {what} are not all finite numbers")
        return array

    found = result["histograms"][name]
    edges = numbers(found, "edges", None, "edges")
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise MessageError(f"{where}: edges do not increase from bin to bin")
    contents = {}
    for key in (c.name for c in result_analysis(result).categories if c.name in found):
        values = numbers(found[key], "values", len(edges) - 1, f"values of {key}")
        variances = numbers(found[key], "variances", len(edges) - 1, f"variances of {key}")
        if (variances < 0).any():
            raise MessageError(f"{where}: variances of {key} are negative in a bin")
        if result_analysis(result).category(key).role == "data" and ((values < 0) | (values % 1 != 0)).any():
            raise MessageError(f"{where}: values of {key} are not whole counts of events")
        contents[key] = Contents(values, variances)
    return edges, contents


def events_label(edges: Array, unit: str) -> str:
    """Return the label of a histogram's vertical axis; it names the bin width if all bins have the same."""
    width = f"{edges[1] - edges[0]:g} {unit}".rstrip()
    return f"Events / {width}" if np.ptp(np.diff(edges)) < 1e-9 else "Events / bin"
