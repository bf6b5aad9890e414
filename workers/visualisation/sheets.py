"""Draw a figure once for several files: a renderer that passes each stroke on to the renderer of every file.

Going through a figure's artists, with the layout of its texts, takes far longer
than drawing what comes of it.
"""
# ruff: noqa: N803, PLR0917  the methods' arguments are matplotlib's

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_pdf import RendererPdf
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox, Transform, TransformedPath

from workers.visualisation.formulas import FORMULAS

POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Sheet:
    """One file on which a figure is drawn; ``zoom`` is the length of a point in its renderer's units."""

    renderer: Any
    finish: Callable[[], bytes]
    zoom: float = 1.0

    def scaled(self, transform: Transform) -> Transform:
        """An affine transform into points, made one into the renderer's units."""
        if self.zoom == 1:
            return transform
        return Affine2D(np.diag([self.zoom, self.zoom, 1.0]) @ transform.get_matrix())

    def context(self, gc: GraphicsContextBase) -> GraphicsContextBase:
        """How a stroke looks, clipped in the renderer's units."""
        if self.zoom == 1:
            return gc
        own = copy.copy(gc)
        rectangle = gc.get_clip_rectangle()
        if rectangle is not None:
            own.set_clip_rectangle(Bbox(self.zoom * rectangle.get_points()))
        path: Any
        path, transform = gc.get_clip_path()
        if transform is not None:
            own.set_clip_path(TransformedPath(path, self.scaled(transform)))
        return own


class Sheets(RendererBase):
    """The renderer of several sheets, for a figure that measures in points from its lower left.

    Of matplotlib's strokes it passes on those our figures are made of: lines,
    areas and text, which are sharp at every size. An image raises NotImplementedError.
    """

    def __init__(self, sheets: Sequence[Sheet], width: float, height: float) -> None:
        super().__init__()
        self._sheets = sheets
        self._size = width, height
        self._text2path.mathtext_parser = FORMULAS

    def get_canvas_width_height(self) -> tuple[float, float]:
        """Width and height in points."""
        return self._size

    def flipy(self) -> bool:
        """Whether texts are placed from the top."""
        return False

    def new_gc(self) -> GraphicsContextBase:
        """How a stroke will look; the pdf's own has more in it than the others need."""
        for sheet in self._sheets:
            if isinstance(sheet.renderer, RendererPdf):
                return sheet.renderer.new_gc()  # type: ignore[no-any-return]
        return super().new_gc()

    def open_group(self, s: str, gid: str | None = None) -> None:
        """Begin a group of strokes."""
        for sheet in self._sheets:
            sheet.renderer.open_group(s, gid)

    def close_group(self, s: str) -> None:
        """End a group of strokes."""
        for sheet in self._sheets:
            sheet.renderer.close_group(s)

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform, rgbFace: Any = None) -> None:
        """Draw a line or an area."""
        for sheet in self._sheets:
            sheet.renderer.draw_path(sheet.context(gc), path, sheet.scaled(transform), rgbFace)

    def draw_markers(
        self,
        gc: GraphicsContextBase,
        marker_path: Path,
        marker_trans: Transform,
        path: Path,
        trans: Transform,
        rgbFace: Any = None,
    ) -> None:
        """Draw a marker at each point of a path."""
        for sheet in self._sheets:
            marker, at = sheet.scaled(marker_trans), sheet.scaled(trans)
            sheet.renderer.draw_markers(sheet.context(gc), marker_path, marker, path, at, rgbFace)

    def draw_path_collection(
        self,
        gc: GraphicsContextBase,
        master_transform: Transform,
        paths: Sequence[Path],
        all_transforms: Any,
        offsets: Any,
        offset_trans: Transform,
        *looks: Any,
        **hatches: Any,
    ) -> None:
        """Draw lines or areas, each at its offset."""
        for sheet in self._sheets:
            master, by = sheet.scaled(master_transform), sheet.scaled(offset_trans)
            sheet.renderer.draw_path_collection(
                sheet.context(gc), master, paths, all_transforms, offsets, by, *looks, **hatches
            )

    def draw_quad_mesh(
        self,
        gc: GraphicsContextBase,
        master_transform: Transform,
        meshWidth: int,
        meshHeight: int,
        coordinates: Any,
        offsets: Any,
        offsetTrans: Transform,
        *looks: Any,
    ) -> None:
        """Draw a mesh of cells."""
        for sheet in self._sheets:
            master, by = sheet.scaled(master_transform), sheet.scaled(offsetTrans)
            sheet.renderer.draw_quad_mesh(
                sheet.context(gc), master, meshWidth, meshHeight, coordinates, offsets, by, *looks
            )

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: bool | Literal["TeX"] = False,
        mtext: Text | None = None,
    ) -> None:
        """Draw a line of text."""
        for sheet in self._sheets:
            renderer, left, up = sheet.renderer, x * sheet.zoom, y * sheet.zoom
            height = renderer.height - up if renderer.flipy() else up
            renderer.draw_text(sheet.context(gc), left, height, s, prop, angle, ismath, mtext)
