"""The processes that draw figures: what they draw, and what happens when one of them exits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import MessageError
from tests.support.paths import ROOT
from tests.unit.test_plots import result
from workers.visualisation.plots.pool import DrawingPool
from workers.visualisation.plots.stack import figure_bytes, histogram_figure


class ExitsWhenRead:
    """The process that unpickles this exits."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


@pytest.fixture
def pool() -> Iterator[DrawingPool]:
    made = DrawingPool(1)
    yield made
    made.close()


def test_a_figure_drawn_in_a_process_has_the_same_bytes_as_one_drawn_here(pool: DrawingPool) -> None:
    figure = histogram_figure(result(), "m4l_4e")
    expected = {f"m4l_4e.{kind}": figure_bytes(figure, kind) for kind in ("png", "pdf")}
    assert pool.draw(result(), ["m4l_4e"]) == expected


def test_figures_are_drawn_after_a_process_exited(pool: DrawingPool) -> None:
    exiting = pool.submit(os._exit, 1)
    assert pool.draw(result(), ["m4l"]).keys() == {"m4l.png", "m4l.pdf"}
    assert exiting.exception() is not None


def test_figures_that_end_every_process_are_an_error_in_words(pool: DrawingPool) -> None:
    with pytest.raises(MessageError, match=r"run run1: its figures cannot be drawn; .* exited 2 times"):
        pool.draw(result(histograms=ExitsWhenRead()), ["m4l"])
    assert pool.draw(result(), ["m4l"])


def test_a_histogram_that_is_not_valid_is_refused_by_name(pool: DrawingPool) -> None:
    with pytest.raises(MessageError, match="'m4l_3e' is not in the result"):
        pool.draw(result(), ["m4l", "m4l_3e"])


def test_the_service_that_hands_figures_to_processes_does_not_load_matplotlib() -> None:
    code = "import sys, workers.visualisation.service; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
