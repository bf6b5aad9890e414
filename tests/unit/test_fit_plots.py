"""The figures of a fit, compared with baseline pictures.

``python -m tests.unit.test_fit_plots`` redraws the baseline pictures; look at them before committing.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from tests.support.drawing import all_files
from workers.visualisation.plots.fit import FIGURES, draw_figure
from workers.visualisation.plots.stack import figure_bytes

BASELINE = Path(__file__).parent / "baseline"
DPI = 50
TOLERANCE = 6.0
NAMES = (*FIGURES, "fit_mass")


@cache
def _kept() -> str:
    return (BASELINE / "fitted.json").read_text()


def fitted() -> dict[str, Any]:
    """Return a toy run with its fit; the end of this file makes it."""
    return {"title": "TOY demo", **json.loads(_kept())}


def draw(name: str, result: dict[str, Any]) -> Figure:
    return draw_figure(result, name)


def texts(figure: Figure) -> str:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())]
    return "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_looks_like_its_baseline(name: str, tmp_path: Path) -> None:
    drawn = tmp_path / f"{name}.png"
    drawn.write_bytes(figure_bytes(draw(name, fitted()), "png", DPI))
    difference = compare_images(str(BASELINE / drawn.name), str(drawn), tol=TOLERANCE)
    assert difference is None, difference


@pytest.mark.parametrize("name", NAMES)
def test_only_the_fit_of_an_incomplete_run_has_a_watermark(name: str) -> None:
    for complete in (True, False):
        axes = draw(name, fitted() | {"complete": complete}).axes
        sizes = [float(text.get_fontsize()) for panel in axes for text in panel.texts]
        assert (max(sizes, default=0.0) > 70) is not complete


@pytest.mark.parametrize("name", NAMES)
def test_the_fit_of_a_toy_is_labelled_as_one_and_another_names_its_data(name: str) -> None:
    toy, real = fitted(), fitted() | {"toy": False, "release": "2020e-13tev"}
    assert "TOY demo – not ATLAS data" in texts(draw(name, toy))
    shown = texts(draw(name, real))
    assert "TOY" not in shown
    assert "Open Data" in shown
    assert "for education" in shown


def test_every_nuisance_parameter_has_a_pull() -> None:
    result = fitted()
    shown = texts(draw("fit_pulls", result))
    for expected in ("Luminosity", "Lepton scale factors", r"$ZZ^{*}$ normalisation"):
        assert expected in shown
    axes, by_bin = draw("fit_pulls", result).axes
    assert "MC statistics" in by_bin.get_ylabel()
    bins = [name for name in result["fit"]["parameters"] if name.startswith("mc_statistics")]
    names = [name for name in result["fit"]["parameters"] if name not in ("mu", *bins)]
    assert len(axes.get_yticks()) == len(names)
    (drawn,) = [container for container in by_bin.containers if isinstance(container, ErrorbarContainer)]
    assert len(drawn.lines[0].get_xydata()) == len(bins)


def test_an_open_interval_and_a_missing_mass_are_drawn() -> None:
    result = copy.deepcopy(fitted())
    fit = result["fit"]
    fit["signal_strength_interval"] = [None, fit["signal_strength_interval"][1]]
    fit["upper_limit"]["observed"] = None
    fit["mass"] |= {"value_gev": None, "interval_gev": [None, None], "problem": "the likelihood is highest at 115 GeV"}

    assert figure_bytes(draw("fit_likelihood", result), "png", DPI)
    assert "more than" in texts(draw("fit_limits", result))
    assert "the likelihood is highest at 115 GeV" in texts(draw("fit_mass", result))


def test_the_result_files_have_the_figures_and_the_workspace() -> None:
    result = fitted()
    result["histograms"] = {"m4l": result["histograms"]["m4l"]}
    files = all_files(result)
    assert {f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")} <= files.keys()
    assert json.loads(files["workspace.json"]) == result["workspace"]
    assert len(files) <= 64
    assert np.isfinite(result["fit"]["signal_strength"])


def test_a_fit_whose_peak_was_not_found_has_all_other_figures() -> None:
    result = fitted()
    result["fit"]["mass_problem"] = f"no minimum, not at {result['fit'].pop('mass')['value_gev']}"
    result["histograms"] = {"m4l": result["histograms"]["m4l"]}
    files = all_files(result)
    assert {f"{name}.png" for name in NAMES if name != "fit_mass"} <= files.keys()
    assert "fit_mass.png" not in files


if __name__ == "__main__":
    from tests.support.toy_run import document
    from workers.analysis.statistics.fit import fit_of

    made = document()
    made["fit"] = fit_of(made)
    (BASELINE / "fitted.json").write_text(json.dumps(made))
    for figure in NAMES:
        (BASELINE / f"{figure}.png").write_bytes(figure_bytes(draw(figure, made), "png", DPI))
