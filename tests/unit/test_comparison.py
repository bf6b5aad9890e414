"""``analysis.py compare``: which results it reads, what it prints, and its exit code."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import hist
import numpy as np
import pytest
import uproot

import analysis
from common.comparison.compare import compare
from common.comparison.reading import read
from common.errors import SettingsError
from tests.support import toy_run
from workers.visualisation.result_files import root_file

EDGES = [0.0, 1.0, 3.0, 4.0]
RESULT: dict[str, Any] = {
    "release": "demo",
    "settings": {"lumi": 10.0, "samples": ["run1", "zjets", "higgs"], "chunk_entries": 100},
    "samples": {
        "run1": {"category": "data", "events_selected": 9, "yield": 9.0, "yield_error": 3.0},
        "zjets": {"category": "z", "events_selected": 40, "yield": 8.125, "yield_error": 1.375},
        "higgs": {"category": "signal", "events_selected": 50, "yield": 1.5, "yield_error": 0.25},
    },
    "categories": {
        "data": {"events_selected": 9, "yield": 9.0, "yield_error": 3.0},
        "z": {"events_selected": 40, "yield": 8.125, "yield_error": 1.375},
        "signal": {"events_selected": 50, "yield": 1.5, "yield_error": 0.25},
    },
    "histograms": {
        "mass": {
            "edges": EDGES,
            "data": {"values": [4.0, 3.0, 2.0], "variances": [4.0, 3.0, 2.0]},
            "z": {"values": [5.0, 3.0, 0.125], "variances": [1.0, 0.875, 0.015625]},
            "signal": {"values": [0.5, 1.0, 0.0], "variances": [0.03125, 0.03125, 0.0]},
        }
    },
    "fit": {"signal_strength": 1.25},
    "provenance": {"commit": "abc", "inputs": {"run1": {"location": "/here", "bytes": 7, "adler32": "0000002a"}}},
}  # fmt: skip


def written(folder: Path, name: str = "a", **changed: Any) -> Path:
    """Write a result folder; ``changed`` replaces top-level keys."""
    path = folder / name
    path.mkdir()
    (path / "result.json").write_text(json.dumps({**RESULT, **changed}))
    return path


def with_change(*path: str | int, value: Any) -> dict[str, Any]:
    """Return the top-level key of the result in which one value is changed."""
    changed = deepcopy(RESULT)
    part = changed
    for key in path[:-1]:
        part = part[key]  # type: ignore[index]
    part[path[-1]] = value  # type: ignore[index]
    return {str(path[0]): changed[str(path[0])]}


def text(folder: Path, content: str, name: str = "yields.csv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_equal_results_are_the_same_bits_with_exit_code_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = written(tmp_path, "a"), written(tmp_path, "b")
    assert analysis.main(["compare", str(a), str(b / "result.json")]) == 0
    assert "A and B: the same bits (3 yields of samples, 3 yields of categories, 9 bins)" in capsys.readouterr().out


def test_one_different_bit_gives_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = with_change("histograms", "mass", "z", "values", 1, value=np.nextafter(3.0, 4.0))
    a, b = written(tmp_path, "a"), written(tmp_path, "b", **other)
    assert analysis.main(["compare", str(a), str(b)]) == 1
    assert "A and B differ in 1 number (" in capsys.readouterr().out


def test_a_difference_is_given_in_units_in_percent_and_in_standard_deviations(tmp_path: Path) -> None:
    other = with_change("samples", "zjets", "yield", value=9.75)
    (found,) = compare(read(written(tmp_path)), read(written(tmp_path, "b", **other))).differences
    assert (found.level, found.name, found.quantity) == ("sample", "zjets", "yield")
    assert (found.difference, found.relative) == (1.625, 0.2)
    assert found.standard_deviations == pytest.approx(1.625 / (1.375 * 2**0.5))


def test_the_largest_difference_comes_first_and_nan_before_it(tmp_path: Path) -> None:
    values = [5.0 + 0.1, 3.0 + 2.0, float("nan")]
    other = with_change("histograms", "mass", "z", "values", value=values)
    found = compare(read(written(tmp_path)), read(written(tmp_path, "b", **other))).differences
    assert [one.name for one in found] == ["mass 3 to 4", "mass 1 to 3", "mass 0 to 1"]


def test_settings_inputs_and_versions_are_listed_but_numbers_stay_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance = {"commit": "def", "inputs": {"run1": {"location": "/there", "bytes": 7, "adler32": "0000002b"}}}
    settings = {**RESULT["settings"], "lumi": 12.0, "samples": ["zjets", "higgs", "run1"]}
    a, b = written(tmp_path, "a"), written(tmp_path, "b", provenance=provenance, settings=settings)
    assert analysis.main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4:] == [
        "setting lumi: 10.0 in A, 12.0 in B",
        "input run1: bytes 7 adler32 0000002a in A, bytes 7 adler32 0000002b in B",
        "version commit: abc in A, def in B",
    ]


def test_the_same_file_at_another_location_is_no_difference(tmp_path: Path) -> None:
    provenance = {"commit": "abc", "inputs": {"run1": {"location": "/there", "bytes": 7, "adler32": "0000002a"}}}
    assert not compare(read(written(tmp_path)), read(written(tmp_path, "b", provenance=provenance))).inputs


def test_another_fit_of_the_same_histograms_is_a_difference(tmp_path: Path) -> None:
    a = read(written(tmp_path))
    assert compare(a, read(written(tmp_path, "b", fit={"signal_strength": 1.25 * (1 + 1e-9)}))).same
    found = compare(a, read(written(tmp_path, "c", fit={"signal_strength": 1.3})))
    assert (found.same, found.explanation, [one.name for one in found.derived]) == (
        False,
        None,
        ["fit.signal_strength"],
    )


#: What a complete run has beside its yields and histograms.
DERIVED: dict[str, Any] = {
    "window": {"low": 115.0, "unit": "GeV", "n_data": 39, "significance": 2.4},
    "fit": {
        "signal_strength": 1.25,
        "signal_strength_interval": [0.5, 2.0],
        "significance_observed": 2.34,
        "upper_limit": {"observed": 2.25, "expected": [0.5, 0.75, 1.0, 1.5, 2.0]},
        "limit_scan": {"cls_expected": [[0.5, 0.75], [0.25, 0.5]]},
        "postfit": {"zz": {"values": [1.0, 2.0, 4.0]}},
        "mass": {"interval_gev": [122.5, 127.5], "problem": None},
        "software": {"pyhf": "0.7.6"},
    },
    "fit_problem": None,
    "workspace": {"channels": [{"name": "m4l", "samples": [{"name": "zz", "data": [1.0, 2.0]}]}], "version": "1.0.0"},
}


def with_derived(*path: str | int, value: Any) -> dict[str, Any]:
    """Return ``DERIVED`` with one value changed."""
    changed: Any = deepcopy(DERIVED)
    part = changed
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return dict(changed)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("window", "n_data"), 25, "window.n_data: 39 in A, 25 in B"),
        (("window", "significance"), 2.4 * (1 + 1e-9), "window.significance: 2.4 in A, 2.4000000024 in B"),
        (("window",), None, "window: 4 values in A, none in B"),
        (("fit", "signal_strength"), 1.2500025, "fit.signal_strength: 1.25 in A, 1.2500025 in B"),
        (("fit", "signal_strength_interval"), [0, 99], "fit.signal_strength_interval: 2 of 2 values differ; "
         "the largest difference: 2.0 in A, 99 in B"),
        (("fit", "signal_strength_interval"), [0.5], "fit.signal_strength_interval: 2 values in A, 1 value in B"),
        (("fit", "significance_observed"), None, "fit.significance_observed: 2.34 in A, none in B"),
        (("fit", "upper_limit", "expected", 2), 77, "fit.upper_limit.expected: 1 of 5 values differ; "
         "the largest difference: 1.0 in A, 77 in B"),
        (("fit", "upper_limit", "expected", 2), None, "fit.upper_limit.expected: 1 of 5 values differ; "
         "the largest difference: 1.0 in A, none in B"),
        (("fit", "limit_scan", "cls_expected", 1, 0), 0.375, "fit.limit_scan.cls_expected: 1 of 4 values differ; "
         "the largest difference: 0.25 in A, 0.375 in B"),
        (("fit", "limit_scan"), None, "fit.limit_scan: 4 values in A, none in B"),
        (("fit", "mass", "problem"), "no peak", "fit.mass.problem: none in A, no peak in B"),
        (("fit",), None, "fit: 20 values in A, none in B"),
        (("fit_problem",), "the run has no data", "fit_problem: none in A, the run has no data in B"),
        (("workspace", "channels", 0, "samples", 0, "data", 1), 3.0,
         "workspace.channels[0].samples[0].data: 1 of 2 values differ; the largest difference: 2.0 in A, 3.0 in B"),
        (("workspace",), None, "workspace: 5 values in A, none in B"),
    ],
)  # fmt: skip
def test_any_number_of_window_fit_and_workspace_that_differs_is_reported(
    path: tuple[str | int, ...], value: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(written(tmp_path, "a", **DERIVED)), str(written(tmp_path, "b", **with_derived(*path, value=value)))]
    assert analysis.main(["compare", *paths]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("A and B differ (")
    assert lines[4:] == ["all yields and bins are the same", line]
    assert analysis.main(["compare", *reversed(paths)]) == 1


def test_the_last_digits_of_a_fit_may_differ_and_are_not_called_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_derived("fit", "signal_strength", value=1.25 * (1 + 5e-7))
    other["fit"]["postfit"]["zz"]["values"] = [1.0 + 1e-7, 2.0, 4.0]
    paths = [str(written(tmp_path, "a", **DERIVED)), str(written(tmp_path, "b", **other))]
    assert analysis.main(["compare", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("A and B: the same but for the last digits of the fit (")
    assert lines[4:] == ["fit: 2 values differ by at most 5e-07 (relative), within the 1e-06 that is allowed"]
    assert analysis.main(["compare", *paths, "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (comparison["same"], comparison["same_bits"]) == (True, False)
    assert [one["name"] for one in comparison["derived"]] == ["fit.signal_strength", "fit.postfit.zz.values"]


def test_the_run_and_the_version_of_pyhf_may_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = with_derived("fit", "software", value={"pyhf": "0.8"})
    about = {"run_id": "other", "timing": {"seconds": 2.0}, "warnings": ["read from the cache"]}
    paths = [str(written(tmp_path, "a", **DERIVED)), str(written(tmp_path, "b", **other, **about))]
    assert analysis.main(["compare", *paths]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "A and B: the same bits (3 yields of samples, 3 yields of categories, 9 bins); "
        "window, fit, fit_problem, workspace are compared, too"
    ]


def test_an_older_result_lacks_parts_which_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path, "a", **DERIVED), written(tmp_path, "b")
    assert analysis.main(["compare", str(a), str(b)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fit.upper_limit: 6 values in A, none in B" in lines
    assert "workspace: 5 values in A, none in B" in lines


def test_a_fit_that_is_nested_too_deeply_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [written(tmp_path, name, workspace="NESTED") for name in ("a", "b")]
    for path, value in zip(paths, "12", strict=True):
        file = path / "result.json"
        file.write_text(file.read_text().replace('"NESTED"', "[" * 700 + value + "]" * 700))
    assert analysis.main(["compare", *map(str, paths)]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_window_and_fit_are_listed_although_a_cause_reproduces_the_bins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histograms = {"mass": {"edges": [0.0, 3.0, 4.0]}}
    for name in ("data", "z", "signal"):
        contents = RESULT["histograms"]["mass"][name]
        histograms["mass"][name] = {key: [one[0] + one[1], one[2]] for key, one in contents.items()}
    other = with_derived("window", "n_data", value=25)
    a, b = written(tmp_path, "a", **DERIVED), written(tmp_path, "b", **other, histograms=histograms)
    assert analysis.main(["compare", str(a), str(b)]) == 1
    output = capsys.readouterr().out
    assert "merged, give those of B, in histogram mass (all yields and bins are reproduced; tolerance 1e-09" in output
    assert "window.n_data: 39 in A, 25 in B" in output


def test_a_number_that_one_sample_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = deepcopy(RESULT["samples"])
    del samples["higgs"]["events_selected"], samples["zjets"]["yield_error"]
    a, b = written(tmp_path, "a"), written(tmp_path, "b", samples=samples)
    assert analysis.main(["compare", str(a), str(b)]) == 1
    names = "error of yield of sample zjets, events_selected of sample higgs"
    assert f"only in A: {names}" in capsys.readouterr().out.splitlines()


def test_numbers_that_one_result_has_for_no_sample_are_listed(tmp_path: Path) -> None:
    samples = {name: {**one, "events_read": 100} for name, one in RESULT["samples"].items()}
    found = compare(read(written(tmp_path, "a", samples=samples)), read(written(tmp_path, "b")))
    assert found.same
    assert found.not_compared == ["events_read of samples"]


def test_a_root_file_has_the_same_bits_as_its_result(tmp_path: Path) -> None:
    document = toy_run.document()
    (tmp_path / "result.json").write_text(json.dumps(document))
    (tmp_path / "histograms.root").write_bytes(root_file(document))
    found = compare(read(tmp_path), read(tmp_path / "histograms.root"))
    assert found.same
    assert found.compared["histogram"] > 300
    assert found.not_compared == ["samples", "categories", "settings", "inputs", "versions"]


def test_a_root_file_of_counts_is_compared_by_anyone(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "theirs.root") as file:
        file["mass/data"] = (np.array([4.0, 3.0, 2.0]), np.array(EDGES))
        weighted = hist.Hist(hist.axis.Variable(EDGES), storage=hist.storage.Weight())
        for category in ("z", "signal"):
            contents = RESULT["histograms"]["mass"][category]
            weighted[...] = np.stack([contents["values"], contents["variances"]], axis=-1)
            file[f"mass/{category}"] = weighted
    assert compare(read(written(tmp_path)), read(tmp_path / "theirs.root")).same


def test_a_sample_that_a_root_file_lacks_is_found_by_its_histograms(tmp_path: Path) -> None:
    document = toy_run.document()
    (tmp_path / "result.json").write_text(json.dumps(document))
    (tmp_path / "theirs.root").write_bytes(root_file(toy_run.document(samples=("data_A", "llll", "ggH125_ZZ4lep"))))
    found = compare(read(tmp_path, "A"), read(tmp_path / "theirs.root", "B"))
    assert found.explanation is not None
    assert found.explanation.text == "B lacks sample Zee"


def test_rounded_yields_agree_to_the_digits_that_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = written(tmp_path)
    yields = text(tmp_path, "category,yield,yield_error,events\ndata,9,3,9\nz,8.12,1.4,\nsignal,1.5,,50\n")
    assert analysis.main(["compare", str(a), str(yields)]) == 0
    assert "A and B: the same to the digits given (3 yields of categories)" in capsys.readouterr().out
    (found,) = compare(read(a), read(text(tmp_path, "category,yield\ndata,9\nz,8.11\nsignal,1.5\n"))).differences
    assert (found.name, found.error_b) == ("z", None)


def test_rounded_yields_of_another_luminosity_are_explained(tmp_path: Path) -> None:
    yields = text(tmp_path, "sample,yield\nrun1,9\nzjets,9.75\nhiggs,1.8\n")
    found = compare(read(written(tmp_path)), read(yields)).explanation
    assert found is not None
    assert found.kind == "luminosity"


def test_a_sample_that_yields_lack_is_named(tmp_path: Path) -> None:
    found = compare(read(written(tmp_path), "A"), read(text(tmp_path, "sample,yield\nrun1,9\nhiggs,1.5\n"), "B"))
    assert found.only_in_a == ["sample zjets"]
    assert found.explanation is not None
    assert found.explanation.text == "B lacks sample zjets"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "line 1: the columns are missing; give sample or category, yield, and optionally yield_error and events"),
        ("sample,yeild\nx,1\n", "line 1: the columns are sample, yeild; "),
        ("sample,category,yield\nx,y,1\n", "line 1: the columns are sample, category, yield; "),
        ("sample,yield\n", "line 1: there is no row of yields"),
        ("sample,yield\nx,1\ny,1,2\n", "line 3: the row does not have 2 cells, as the header has"),
        ("sample,yield\nx,1\nx,2\n", "line 3: sample x is there twice"),
        ("sample,yield\n,1\n", "line 2: the sample has no name"),
        ("sample,yield\nx,1 200\n", "line 2: yield '1 200' is not a number; write for example 123"),
        ("sample,yield,events\nx,1,2.5\n", "line 2: events '2.5' is not a number of events"),
    ],
)
def test_an_unusable_csv_is_refused_with_its_line(content: str, problem: str, tmp_path: Path) -> None:
    path = text(tmp_path, content)
    with pytest.raises(SettingsError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: this is not a result: {problem}")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none", None, "there is no such file or folder"),
        ("picture.png", "x", "this is not a result; give a result folder, a result.json, a histograms.root"),
        ("result.json", "{", "this is not a result: "),
        ("result.json", "{}", "it has no samples, categories or histograms"),
        ("result.json", '{"samples": {"x": {"yield": "many"}}}', "Expected `float`, got `str`"),
        ("result.json", '{"histograms": {"m": {"edges": [0, 1], "z": {"values": [1, 2], "variances": [1, 2]}}}}',
         "histogram m, z: edges, values and variances differ in length"),
        ("histograms.root", "not ROOT", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_not_a_result_is_refused_with_exit_code_two(
    name: str, content: str | None, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert analysis.main(["compare", str(written(tmp_path)), str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"analysis.py: {path}: ")
    assert problem in error


def test_a_damaged_root_file_is_refused(tmp_path: Path) -> None:
    whole = root_file(toy_run.document())
    path = tmp_path / "histograms.root"
    for size in range(1, len(whole) // 2, len(whole) // 20):
        path.write_bytes(whole[:size])
        with pytest.raises(SettingsError, match=r"histograms\.root"):
            read(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="this is not a result; give a result folder"):
        read(tmp_path)


def test_results_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    one, other = text(tmp_path, "sample,yield\nx,1\n"), text(tmp_path, "category,yield\nx,1\n", "other.csv")
    with pytest.raises(SettingsError, match=r"there is nothing to compare: .* has samples, .* has categories"):
        compare(read(one), read(other))


def test_json_is_one_document_with_each_result_against_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_change("histograms", "mass", "z", "values", 0, value=float("nan"))
    paths = [str(written(tmp_path, "a")), str(written(tmp_path, "b")), str(written(tmp_path, "c", **other))]
    assert analysis.main(["compare", *paths, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document["results"]) == ["A", "B", "C"]
    assert [(one["a"], one["b"], one["same"]) for one in document["comparisons"]] == [
        ("A", "B", True),
        ("A", "C", False),
    ]
    assert document["comparisons"][1]["differences"][0]["b"] is None


def test_tables_are_not_cut_at_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "a_sample_with_a_name_that_alone_takes_most_of_the_width_of_a_terminal"
    samples = {name: {"yield": 12345.678, "yield_error": 1.5}}
    a = written(tmp_path, "a", samples=samples)
    b = written(tmp_path, "b", samples={name: {"yield": 12349.678, "yield_error": 1.5}})
    assert analysis.main(["compare", str(a), str(b)]) == 1
    row = next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert row.split() == [name, "yield", "12,345.7", "1.5", "12,349.7", "1.5", "4", "0.0324", "%", "1.9"]


def test_one_path_alone_is_wrong_usage(tmp_path: Path) -> None:
    assert analysis.main(["compare", str(written(tmp_path))]) == 2
