"""The ticks of a figure's axes, all of one length as one line of markers: matplotlib draws them one by one."""

from __future__ import annotations

from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT, TICKRIGHT, TICKUP
from matplotlib.ticker import NullLocator

_MARKERS: dict[str, tuple[Any, Any]] = {"x": (TICKUP, TICKDOWN), "y": (TICKRIGHT, TICKLEFT)}


def draw_ticks(figure: Figure) -> None:
    """Draw the ticks of all axes, inwards from all four sides, in the style's lengths.

    Axes must have their final limits and locators: what is drawn does not follow them.
    """
    axes_of_axis: dict[Axis, Axes] = {axis: axes for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)}
    for axis, axes in axes_of_axis.items():
        _draw(axes, axis, "major")
        _draw(axes, axis, "minor")
    for axis, axes in axes_of_axis.items():  # only now: panels that share an axis share its locators
        axes.tick_params(which="major", bottom=False, top=False, left=False, right=False)
        axis.set_minor_locator(NullLocator())


def _draw(axes: Axes, axis: Axis, which: Literal["major", "minor"]) -> None:
    is_x = axis is axes.xaxis
    name = "x" if is_x else "y"
    looks: Any = mpl.rcParams
    low, high = sorted(axis.get_view_interval())
    places = np.asarray(axis.get_ticklocs(minor=which == "minor"))
    along = places[(low <= places) & (places <= high)]
    for side, marker in enumerate(_MARKERS[name]):
        across = np.full_like(along, side)
        line = Line2D(
            *((along, across) if is_x else (across, along)),
            transform=axes.get_xaxis_transform() if is_x else axes.get_yaxis_transform(),
            marker=marker,
            markersize=looks[f"{name}tick.{which}.size"],
            markeredgewidth=looks[f"{name}tick.{which}.width"],
            color="black",
            linestyle="",
            clip_on=False,
            zorder=axis.get_zorder(),
        )
        axes.add_artist(line)
