"""The worker processes that draw figures: the files they return, and figures whose process exits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import MessageError
from tests.support import worker_functions
from tests.support.paths import ROOT
from tests.unit.test_plots import result
from workers.visualisation.plots.pool import DrawingPool, drawn
from workers.visualisation.plots.stack import figure_bytes, histogram_figure


class ExitsWhenRead:
    """The process that unpickles this exits."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


class KillsFirstReader:
    """Histograms; the first process that unpickles them is killed."""

    def __init__(self, histograms: dict[str, Any], mark: Path) -> None:
        self._read = histograms, mark

    def __reduce__(self) -> tuple[Any, tuple[dict[str, Any], Path]]:
        return read_histograms, self._read


def read_histograms(histograms: dict[str, Any], mark: Path) -> dict[str, Any]:
    worker_functions.die_once(mark)
    return histograms


@pytest.fixture(scope="module")
def pool() -> Iterator[DrawingPool]:
    made = DrawingPool(1)
    yield made
    made.close()


def test_a_figure_of_a_worker_process_has_the_bytes_of_one_drawn_here(pool: DrawingPool) -> None:
    figure = histogram_figure(result(), "m4l_4e")
    expected = {f"m4l_4e.{kind}": figure_bytes(figure, kind) for kind in ("png", "pdf")}
    assert drawn(pool.draw(result(), ["m4l_4e"])) == (expected, [])


def test_figures_are_drawn_again_if_a_worker_process_is_killed(pool: DrawingPool, tmp_path: Path) -> None:
    histograms = result()["histograms"]
    found = drawn(pool.draw(result(histograms=KillsFirstReader(histograms, tmp_path / "mark")), ["m4l", "m4l_4e"]))
    assert (tmp_path / "mark").exists()
    assert found == drawn(pool.draw(result(), ["m4l", "m4l_4e"]))


@pytest.mark.slow
def test_a_figure_whose_worker_process_exits_each_time_is_named(pool: DrawingPool) -> None:
    files, problems = drawn(pool.draw(result(histograms=ExitsWhenRead()), ["m4l"]))
    assert files == {}
    assert problems == ["figure m4l cannot be drawn: its worker process exited 2 times; drawing may need more memory"]
    assert drawn(pool.draw(result(), ["m4l"]))[0].keys() == {"m4l.png", "m4l.pdf"}


def test_figures_that_cannot_be_drawn_are_named_with_the_cause_and_others_are_drawn(pool: DrawingPool) -> None:
    files, problems = drawn(pool.draw(result(fit={}), ["fit_pulls", "m4l", "fit_correlations", "fit_mass"]))
    assert files.keys() == {"m4l.png", "m4l.pdf"}
    assert problems == [
        "figure fit_pulls cannot be drawn: KeyError: 'parameters'",
        "figure fit_correlations cannot be drawn: KeyError: 'correlations'",
        "figure fit_mass cannot be drawn: KeyError: 'mass'",
    ]


def test_figures_are_drawn_whatever_the_backend_of_matplotlib_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "no-such-backend")
    pool = DrawingPool(1)
    files, problems = drawn(pool.draw(result(), ["m4l_4e"]))
    pool.close()
    assert files["m4l_4e.png"].startswith(b"\x89PNG")
    assert problems == []


def test_a_histogram_that_is_not_valid_is_refused_by_name(pool: DrawingPool) -> None:
    with pytest.raises(MessageError, match="'m4l_3e' is not in the result"):
        drawn(pool.draw(result(), ["m4l", "m4l_3e"]))


def test_the_service_itself_does_not_import_matplotlib() -> None:
    code = "import sys, workers.visualisation.service; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
