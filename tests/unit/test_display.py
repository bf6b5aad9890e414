"""What the command prints about a result."""

from __future__ import annotations

import copy
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.display import (
    Bars,
    fit_line,
    mass_lines,
    output_console,
    print_table,
    tables,
    tolerant_output,
    window_lines,
)
from common.messages import Stage
from physics import ANALYSES

RESULT: dict[str, Any] = {
    "title": "ATLAS Open Data", "release": "2020e-13tev", "complete": True, "warnings": [],
    "settings": {"lumi": 10.0, "fraction": 0.1, "plots": True},
    "samples": {
        "data_A": {
            "events_read": 39, "events_selected": 12, "yield": 12.0, "yield_error": 3.464,
            "cutflow": {"read": 39, "four_leptons": 31, "flavour": 12},
        },
        "llll": {
            "events_read": 554_279, "events_selected": 108_019, "yield": 14.98463, "yield_error": 0.0472,
            "cutflow": {"read": 554_279, "four_leptons": 553_000, "flavour": 108_019},
        },
    },
    "categories": {
        "data": {"events_selected": 12, "yield": 12.0, "yield_error": 3.464},
        "zz": {"events_selected": 108_019, "yield": 14.98463, "yield_error": 0.0472},
    },
    "window": {
        "low": 115.0, "high": 130.0, "unit": "GeV", "n_data": 1234, "n_signal": 9.4416, "n_signal_error": 0.0513,
        "n_background": 26.123, "n_background_error": 4.21, "n_signal_plus_background": 35.5646,
        "n_signal_plus_background_error": 4.2103, "significance": 2.3401, "significance_s_b": 1.8473,
    },
    "fit": {
        "signal_strength": -0.7512, "signal_strength_error": 0.3123,
        "significance_observed": 0.0, "significance_expected": 1.8112,
    },
    "fit_problem": None,
    "timing": {"events_per_second": 1000.0, "seconds": 75.0, "fit_seconds": 0.42},
}  # fmt: skip


def printed(document: dict[str, Any], width: int = 80) -> list[str]:
    """Return the lines that are printed for a result, with single spaces."""
    file = io.StringIO()
    with Bars(Console(file=file, width=width), len(document["samples"])) as bars:
        bars.result(document)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(RESULT) | changes


@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_number_is_cut_by_a_narrow_terminal(width: int) -> None:
    lines = printed(changed(), width)
    assert "llll 554,279 553,000 108,019 14.98 0.05" in lines
    assert "data_A 39 31 12 12 3.5" in lines
    assert "zz 108,019 14.98 0.05" in lines


def test_the_title_says_the_luminosity_of_the_fraction_that_was_read() -> None:
    assert "Cutflow, events (ATLAS Open Data, 1 fb⁻¹)" in printed(changed())


def test_the_window_has_data_and_expectation_and_names_the_notebook_s_figure() -> None:
    assert window_lines(changed()) == [
        "115 to 130 GeV: 1,234 observed, 36 ± 4 expected",
        "expected signal 9.44 ± 0.05, expected background 26 ± 4",
        "the notebook's figure N/√(B + 0.3·B²), N = S + B: 2.34; S/√B: 1.85",
    ]


def test_a_window_without_background_has_no_figures() -> None:
    window = RESULT["window"] | {"significance": None, "significance_s_b": None, "n_background": 0.0}
    assert not any("√" in line for line in window_lines(changed(window=window)))


def test_the_signal_strength_has_the_digits_that_its_uncertainty_allows() -> None:
    assert fit_line(changed()).startswith("signal strength μ = -0.75 ± 0.31; significance 0.00 observed")


def test_a_result_without_a_fit_says_why() -> None:
    assert fit_line(changed(fit=None, fit_problem="the run is not complete")) == "no fit: the run is not complete"


def test_each_warning_is_printed_after_the_numbers() -> None:
    lines = printed(changed(warnings=["simulation is scaled to 139 fb⁻¹ [LUMI]", "the run has no data"]), 200)
    first = lines.index("warning: simulation is scaled to 139 fb⁻¹ [LUMI]")
    assert lines[first + 1] == "warning: the run has no data"
    assert lines[first - 1].startswith("signal strength")


def test_warnings_are_printed_if_no_event_was_read() -> None:
    samples = {"data_A": RESULT["samples"]["data_A"] | {"events_read": 0}}
    lines = printed(changed(warnings=["the run selects no event"], samples=samples))
    assert "warning: the run selects no event" in lines
    assert not any("Cutflow" in line for line in lines)


@pytest.mark.parametrize("rate", [None, 0.0, -12.5])
def test_a_result_is_printed_whatever_its_rate_is(rate: float | None) -> None:
    assert "data_A 39 31 12 12 3.5" in printed(changed(timing={"events_per_second": rate}))


def test_the_last_line_says_how_long_each_part_took() -> None:
    assert printed(changed())[-1] == "time: files 0.0 s, events 1 min 15 s, fit 0.4 s, plots 0.0 s"


def test_a_follower_says_only_the_times_that_are_in_the_result() -> None:
    file = io.StringIO()
    with Bars(Console(file=file), None, from_submission=False) as bars:
        bars.result(changed())
    assert file.getvalue().splitlines()[-1] == "time: files and events 1 min 15 s, fit 0.4 s"


def test_categories_and_the_mass_have_the_labels_of_the_analysis() -> None:
    analysis = ANALYSES["2020e-13tev"]
    categories = {category.name: RESULT["categories"]["zz"] for category in analysis.categories}
    _, yields = tables(changed(categories=categories), analysis)
    assert list(yields.columns[0].cells) == ["Data", "Z, tt̄", "ZZ*", "H→ZZ* (m_H = 125 GeV)"]
    fit = RESULT["fit"] | {"mass": {"value_gev": 126.4001, "error_gev": 1.5017}}
    assert mass_lines(changed(fit=fit), analysis) == ["Higgs boson's mass: m_H = 126.4 ± 1.5 GeV"]


@pytest.mark.parametrize("width", [44, 60])
def test_a_terminal_that_is_too_narrow_shows_a_table_in_parts(width: int) -> None:
    file = io.StringIO()
    cutflow, _ = tables(changed())
    print_table(cutflow, Console(file=file, width=width, force_terminal=True, color_system=None))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [" ".join(line.split()[1:]) for line in lines if "llll" in line]
    assert " ".join(words) == "554,279 553,000 108,019 14.98 0.05"
    assert words[-1].endswith("14.98 0.05")


@pytest.mark.parametrize("width", [48, 80])
def test_the_bars_show_every_digit(width: int) -> None:
    file = io.StringIO()
    bars = Bars(Console(file=file, width=width), 12)
    events: dict[Stage, int] = {"data-loader": 200_723, "data-processor": 1_000, "analysis": 0}
    bars.update(12, 200_723, events)
    bars.note("waiting for analysis")
    Console(file=file, width=width).print(bars)
    for text in ("12/12", "200723/200723", "1000/200723", "waiting for analysis"):
        assert text in file.getvalue()


# The streams of the command


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_the_terminal_cannot_show_is_replaced(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with tolerant_output(), Bars(Console(width=200), 2) as bars:
            print("m = 125 ± 1 GeV, 10 fb⁻¹, \udcff")
            bars.result(RESULT)
    text = (tmp_path / "out").read_text(encoding=encoding)
    spelled = {"ascii": "m = 125 +- 1 GeV, 10 fb^-1", "latin-1": "m = 125 ± 1 GeV, 10 fb^-¹"}
    assert text.startswith(spelled.get(encoding, "m = 125 ± 1 GeV, 10 fb⁻¹") + ", ?\n")
    assert "108,019" in text


def test_output_is_discarded_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with tolerant_output():
            print("before")
            assert os.read(reader, 100) == b"before\n"
            os.close(reader)
            for _ in range(3):
                print("after" * 10_000)
        assert sys.stdout is stream


def test_a_closed_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with tolerant_output():
        print("a line", flush=True)


def test_a_closed_standard_error_has_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with tolerant_output(), pytest.raises(OSError, match="the stream was closed"):
        sys.stderr.fileno()


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("132", 132)])
def test_a_terminal_of_unknown_width_is_written_to(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    console = output_console()
    console.print("results in [bold]out:bug:/", soft_wrap=True)
    assert console.width == width
    assert capsys.readouterr().out == "results in [bold]out:bug:/\n"
