"""The result of a run as Python objects: the numbers of result.json as hist, pyhf, pandas and matplotlib have them."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import hist
import matplotlib as mpl
import numpy as np
import pytest

import analysis
from tests.support.paths import ROOT
from tests.unit.test_fit_plots import fitted
from workers.visualisation.plots.fit import draw_figure
from workers.visualisation.plots.stack import figure_bytes


@pytest.fixture
def result() -> analysis.Result:
    return analysis.Result(fitted())


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(text)
    return folder


# --- histograms -----------------------------------------------------------------


def test_histograms_have_exactly_the_values_and_variances_of_the_document(result: analysis.Result) -> None:
    assert list(result.histograms) == list(result.document["histograms"])
    for name, histogram in result.histograms.items():
        content = result.document["histograms"][name]
        category, variable = histogram.axes
        assert variable.edges.tolist() == content["edges"]
        assert ["edges", *category] == list(content)
        for one in category:
            assert histogram[one, :].values().tolist() == content[one]["values"]
            assert histogram[one, :].variances().tolist() == content[one]["variances"]


def test_a_histogram_has_a_category_axis_a_labelled_variable_axis_and_weights(result: analysis.Result) -> None:
    m4l = result.histograms["m4l_4mu"]
    assert isinstance(m4l.axes[0], hist.axis.StrCategory)
    assert isinstance(m4l.axes[1], hist.axis.Variable)
    assert m4l.axes.name == ("category", "m4l")
    assert m4l.axes[1].label == r"$m_{4\ell}$ [GeV]"
    assert m4l.storage_type is hist.storage.Weight


def test_histograms_can_be_sliced_added_and_rebinned(result: analysis.Result) -> None:
    m4l = result.histograms["m4l"]
    both = m4l["zz", :] + m4l["signal", :]
    assert both.sum().value == pytest.approx(m4l["zz", :].sum().value + m4l["signal", :].sum().value)
    assert m4l["zz", :: hist.rebin(2)].sum().value == pytest.approx(m4l["zz", :].sum().value)
    assert [one.name for one in m4l.stack("category")] == list(m4l.axes["category"])


def test_the_histograms_of_an_unknown_release_are_named_after_themselves() -> None:
    document = fitted() | {"release": "2040e-100tev"}
    assert analysis.Result(document).histograms["m4l_4mu"].axes.name == ("category", "m4l_4mu")


def test_a_damaged_histogram_is_named() -> None:
    document = fitted()
    document["histograms"]["m4l"]["zz"]["values"].pop()
    with pytest.raises(analysis.ResultError, match="histogram 'm4l' cannot be read"):
        _ = analysis.Result(document).histograms


# --- tables, fit and figures ------------------------------------------------------


def test_tables_have_all_digits_and_show_rounded_numbers(result: analysis.Result) -> None:
    of_zz = result.document["categories"]["zz"]
    assert result.yields["zz"] == of_zz
    sample = result.document["samples"]["data_A"]
    assert list(result.cutflow) == list(result.document["samples"])
    assert {step: result.cutflow["data_A"][step] for step in sample["cutflow"]} == sample["cutflow"]
    for shown in (repr(result.yields), result.yields._repr_html_()):
        assert f"{of_zz['events_selected']:,}" in shown
        assert str(of_zz["yield"]) not in shown
    assert "\x1b" not in repr(result.cutflow)


def test_tables_become_data_frames_with_all_digits(result: analysis.Result) -> None:
    pytest.importorskip("pandas")
    frame = result.yields.to_pandas()
    assert frame.loc["zz", "yield"] == result.document["categories"]["zz"]["yield"]
    assert list(result.cutflow.to_pandas().index) == list(result.document["samples"])


def test_without_pandas_the_error_says_what_to_install(
    result: analysis.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.yields.to_pandas()


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")  # pyhf uses it
def test_the_workspace_has_the_observed_events_for_pyhf(result: analysis.Result) -> None:
    assert result.workspace is not None
    model = result.workspace.model()
    assert model.config.poi_name is not None
    observed = result.workspace.data(model, include_auxdata=False)
    assert sum(observed) == pytest.approx(sum(result.document["histograms"]["m4l"]["data"]["values"]))


def test_a_result_without_a_fit_says_why() -> None:
    without = analysis.Result(fitted() | {"fit": None, "workspace": None, "fit_problem": "the run has no data"})
    assert without.fit is None
    assert without.workspace is None
    assert without.fit_problem == "the run has no data"
    assert "fit_pulls" not in without.figures


def test_every_figure_can_be_drawn_and_an_unknown_one_is_refused_with_the_names(result: analysis.Result) -> None:
    assert {"m4l", "fit_postfit"} < set(result.figures)
    with pytest.raises(analysis.ResultError, match="no figure 'm5l'; it has m4l, "):
        result.plot("m5l")


def test_a_figure_looks_the_same_whatever_style_the_user_has_set(result: analysis.Result) -> None:
    expected = figure_bytes(draw_figure(result.document, "m4l"), "png")
    with mpl.rc_context({"font.family": ["serif"], "mathtext.fontset": "cm", "font.size": 30}):
        figure, saved = result.plot("m4l"), io.BytesIO()
        figure.savefig(saved, format="png", dpi=150)
    assert saved.getvalue() == expected


def test_a_figure_can_be_changed_and_shows_itself_in_a_notebook(result: analysis.Result) -> None:
    figure = result.plot("m4l")
    before = figure._repr_png_()  # type: ignore[attr-defined]
    figure.axes[0].axvline(125)
    after = figure._repr_png_()  # type: ignore[attr-defined]
    assert before.startswith(b"\x89PNG")
    assert after != before


def test_a_result_says_in_one_line_what_it_is_and_lists_problems_and_warnings() -> None:
    incomplete = analysis.Result(
        fitted() | {"complete": False, "problems": ["Zee: the file is missing"], "warnings": ["no data"]}
    )
    assert repr(incomplete).splitlines() == [
        f"<Result {incomplete.run_id}: INCOMPLETE>",
        "problem: Zee: the file is missing",
        "warning: no data",
    ]
    assert "Cutflow" in str(incomplete)


def test_a_printed_result_shows_what_the_command_shows(result: analysis.Result) -> None:
    result.document["fit"]["mass"] = {"value_gev": 125.4, "error_gev": 1.2}
    text = str(result)
    assert "\nHiggs boson's mass: m_H = 125.4 ± 1.2 GeV\n" in text
    assert "\n ZZ* " in text
    assert "\n zz " not in text


# --- folders --------------------------------------------------------------------


def test_a_saved_result_is_loaded_as_it_was(result: analysis.Result, tmp_path: Path) -> None:
    content = json.dumps(result.document).encode()
    folder = analysis.Result(result.document, {"result.json": content, "m4l.png": b"png"}).save(tmp_path)
    assert folder == tmp_path / result.run_id
    loaded = analysis.load(folder)
    assert loaded.document == result.document
    assert loaded.files == {"result.json": content, "m4l.png": b"png"}
    assert np.array_equal(loaded.histograms["m4l"].values(), result.histograms["m4l"].values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run_id": ', "damaged"),
        ("[]", "not the result of a run"),
        ("{}", "no valid run_id, release"),
        (json.dumps(fitted() | {"histograms": 3}), "no valid histograms"),
    ],
)
def test_a_damaged_result_is_refused_with_the_name_of_the_file(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path / "run", text)
    with pytest.raises(analysis.ResultError, match=message) as error:
        analysis.load(folder)
    assert str(folder / "result.json") in str(error.value)


def test_a_folder_without_a_result_is_refused_with_an_example(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(analysis.ResultError, match="give the folder of a run, for example results/RUN_ID"):
            analysis.load(folder)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b"\xff\xfe")
    with pytest.raises(analysis.ResultError, match="damaged"):
        analysis.load(tmp_path)


def test_an_old_result_without_newer_keys_is_loaded(tmp_path: Path) -> None:
    document = fitted()
    for key in ("warnings", "provenance", "fit", "workspace", "fit_problem"):
        document.pop(key, None)
    loaded = analysis.load(write(tmp_path / "run", json.dumps(document)))
    assert loaded.warnings == []
    assert loaded.provenance == {}
    assert loaded.fit_problem == "the run was not fitted"
    assert math.isclose(loaded.yields["zz"]["yield"], document["categories"]["zz"]["yield"])


# --- the module --------------------------------------------------------------------


def test_importing_analysis_imports_no_large_package() -> None:
    heavy = ["numpy", "awkward", "hist", "matplotlib", "pyhf", "uproot", "rich", "workers"]
    code = f"import analysis, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_lists_what_it_offers() -> None:
    assert {"run", "submit", "load", "Result", "SettingsError"} <= set(dir(analysis))
    with pytest.raises(AttributeError, match="'analyse'"):
        _ = analysis.analyse  # type: ignore[attr-defined]
