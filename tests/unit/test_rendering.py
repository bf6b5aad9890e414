"""Figures as files: drawn once for all of them, and as matplotlib draws each by itself."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from PIL import Image

from tests.unit.test_fit_plots import FIGURES, draw, fitted
from tests.unit.test_plots import result
from workers.visualisation.formulas import FORMULAS
from workers.visualisation.plots import histogram_figure, style
from workers.visualisation.rendering import rendered

#: Text half a dot away is averaged out over so many dots; then the RMS (of 255) stays below 3, where one curve
#: of the limits that is absent gives 4.2, and of the likelihood 10.5.
AVERAGED_DOTS, TOLERANCE = 5, 3.0


def averaged(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        smaller = (picture.width // AVERAGED_DOTS, picture.height // AVERAGED_DOTS)
        return np.asarray(picture.convert("RGB").resize(smaller, Image.Resampling.BOX), dtype=np.float64)


@pytest.mark.parametrize("name", ["m4l", *FIGURES])
def test_the_png_looks_as_matplotlib_draws_it_by_itself(name: str) -> None:
    figure, again = ((histogram_figure(result()) if name == "m4l" else draw(name, fitted())) for _ in range(2))
    expected = io.BytesIO()
    with style():
        again.savefig(expected, format="png", dpi=150)
    drawn = rendered(figure, "png", "pdf", "svg")["png"]
    assert np.sqrt(np.mean((averaged(drawn) - averaged(expected.getvalue())) ** 2)) < TOLERANCE


def test_a_file_is_the_same_whether_drawn_alone_or_with_others() -> None:
    together = rendered(histogram_figure(result()), "png", "pdf", "svg")
    assert {kind: rendered(histogram_figure(result()), kind)[kind] for kind in together} == together


def test_the_png_has_the_resolution_that_was_asked_for() -> None:
    with Image.open(io.BytesIO(rendered(histogram_figure(result()), "png", dpi=150)["png"])) as picture:
        assert picture.size == (8 * 150, 7 * 150)
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_what_lies_outside_the_axes_is_cut_off_in_every_file() -> None:
    def figure(height: float) -> Figure:
        made = Figure(figsize=(2, 2))
        axes = made.add_axes((0.25, 0.25, 0.5, 0.5))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.axvspan(0.4, 0.6, 0, height, color="black")
        return made

    for height in (1.0, 5.0):
        with Image.open(io.BytesIO(rendered(figure(height), "png", dpi=100)["png"])) as picture:
            rows = np.flatnonzero((np.asarray(picture.convert("L")) < 128).any(axis=1))
        assert (rows[0], rows[-1]) == pytest.approx((50, 149), abs=1)


@pytest.mark.parametrize(
    "text", [r"$\sqrt{s}$ = 13 TeV", r"$H\to ZZ^{*}\to 4\ell$", r"$\hat{\mu}$ = $1.1_{-0.3}^{+0.4}$"]
)
@pytest.mark.parametrize(("size", "dpi"), [(9.0, 72.0), (13.0, 150.0)])
def test_a_formula_is_set_as_matplotlib_sets_it_at_that_size(text: str, size: float, dpi: float) -> None:
    with style():
        prop = FontProperties(size=size)
        ours, theirs = FORMULAS.parse(text, dpi, prop), MathTextParser("path").parse(text, dpi, prop)
    assert ours[:3] == pytest.approx(theirs[:3], rel=0.02, abs=2)  # it rounds boxes up to whole dots
    assert [glyph[3] for glyph in ours.glyphs] == [glyph[3] for glyph in theirs.glyphs]
    for mine, others in zip(ours.glyphs, theirs.glyphs, strict=True):
        assert (mine[1], *mine[4:]) == pytest.approx((others[1], *others[4:]), rel=0.02, abs=1)
    assert np.array(ours.rects) == pytest.approx(np.array(theirs.rects), rel=0.05, abs=1)


def test_an_image_in_a_figure_is_refused_and_not_left_out() -> None:
    figure = Figure()
    figure.add_subplot().imshow([[0.0, 1.0]])
    with pytest.raises(NotImplementedError):
        rendered(figure, "png")
