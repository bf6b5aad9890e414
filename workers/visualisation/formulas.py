"""Formulas in the figures' texts: each is set once, and scaled to every size and resolution in which it is drawn."""

from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser, VectorParse

_SIZE = 100.0
_DPI = 72.0


class Formulas(MathTextParser):  # type: ignore[type-arg]  # generic only in its stubs
    """Matplotlib's typesetter of mathtext, for all sizes and files at once.

    Matplotlib's own sets a formula anew for each figure, format, size and
    resolution, which takes longer than all the rest of its drawing. Without
    hinting a formula of another size is the same formula, scaled.
    """

    def __init__(self) -> None:
        super().__init__("path")

    def parse(
        self, s: str, dpi: float = _DPI, prop: FontProperties | None = None, *, antialiased: bool | None = None
    ) -> VectorParse:
        """Set a text with formulas: its glyphs and lines, in pixels of 1/dpi inch."""
        prop = FontProperties() if prop is None else prop
        larger = prop.get_size_in_points() / _SIZE
        scale = larger * dpi / _DPI
        width, height, depth, glyphs, lines = self._set(s, _of_one_size(prop))
        return VectorParse(
            width * scale,
            height * scale,
            depth * scale,
            [(font, size * larger, char, glyph, x * scale, y * scale) for font, size, char, glyph, x, y in glyphs],
            [(x * scale, y * scale, w * scale, h * scale) for x, y, w, h in lines],
        )

    @lru_cache(500)  # noqa: B019  there is one, for the life of the process
    def _set(self, text: str, prop: FontProperties) -> VectorParse:
        parsed: VectorParse = super().parse(text, _DPI, prop)
        return parsed


def _of_one_size(prop: FontProperties) -> FontProperties:
    prop = prop.copy()
    prop.set_size(_SIZE)
    return prop


FORMULAS = Formulas()
