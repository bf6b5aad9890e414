"""Read and check the histograms of a result document, and label their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import MessageError
from common.releases import Category, Release
from physics import RELEASES

Array = NDArray[np.float64]

TOY_TITLE = "TOY demo – not ATLAS data"
#: The quantity on the horizontal axis of each histogram, in GeV; histograms of m4l are named m4l or m4l_CHANNEL.
QUANTITIES = MappingProxyType(
    {"m4l": r"$m_{4\ell}$", "m_z1": r"$m_{Z1}$", "m_z2": r"$m_{Z2}$", "lead_pt": r"Leading lepton $p_{\mathrm{T}}$"}
)


@dataclass(frozen=True)
class Contents:
    """One category in one histogram: sums of weights and sums of squared weights, shape (bins,)."""

    values: Array
    variances: Array


def result_release(result: Mapping[str, Any]) -> Release:
    """Return the release of a result; raises SettingsError if there is none with its name."""
    return RELEASES[result["release"]]


def is_toy(result: Mapping[str, Any]) -> bool:
    """Return True if the result or its release says that the events are simulated toys, data included."""
    return bool(result["toy"]) or result_release(result).toy


def simulated(result: Mapping[str, Any]) -> Sequence[Category]:
    """Return the simulated categories of the result's release, in stacking order."""
    return [category for category in result_release(result).categories if category.name != "data"]


def read_histogram(result: Mapping[str, Any], name: str) -> tuple[Array, dict[str, Contents]]:
    """Return the edges [GeV], shape (bins + 1,), and the contents by category, in the release's order.

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
    for key in (c.name for c in result_release(result).categories if c.name in found):
        values = numbers(found[key], "values", len(edges) - 1, f"values of {key}")
        variances = numbers(found[key], "variances", len(edges) - 1, f"variances of {key}")
        if (variances < 0).any():
            raise MessageError(f"{where}: variances of {key} are negative in a bin")
        if key == "data" and ((values < 0) | (values % 1 != 0)).any():
            raise MessageError(f"{where}: values of data are not whole counts of events")
        contents[key] = Contents(values, variances)
    return edges, contents


def axis_label(histogram: str) -> str:
    """Return the label of a histogram's horizontal axis, with its unit, in mathtext."""
    quantity = "m4l" if histogram.startswith("m4l_") else histogram
    return f"{QUANTITIES.get(quantity, quantity)} [GeV]"


def events_label(edges: Array) -> str:
    """Return the label of a histogram's vertical axis; it names the bin width if all bins have the same."""
    return f"Events / {edges[1] - edges[0]:g} GeV" if np.ptp(np.diff(edges)) < 1e-9 else "Events / bin"
