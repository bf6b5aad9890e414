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

from common.display import Bars, fit_line, output_console, tolerant_output, window_lines

RESULT: dict[str, Any] = {
    "title": "ATLAS Open Data", "complete": True, "settings": {"lumi": 10.0, "fraction": 0.1}, "warnings": [],
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
    "timing": {"events_per_second": 1000.0},
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
        "115 to 130 GeV: 1,234 data events, 36 ± 4 expected (9.44 ± 0.05 signal, 26 ± 4 background)",
        "the notebook's figure N/√(B + 0.3·B²), N = S + B: 2.34; S/√B: 1.85",
    ]


def test_a_window_without_background_has_no_figures() -> None:
    window = RESULT["window"] | {"significance": None, "significance_s_b": None, "n_background": 0.0}
    assert len(window_lines(changed(window=window))) == 1


def test_the_signal_strength_has_the_digits_that_its_uncertainty_allows() -> None:
    assert fit_line(changed()).startswith("signal strength -0.75 ± 0.31; significance 0.00 observed")


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
    assert text.startswith("m = 125 ± 1 GeV, 10 fb⁻¹, ?\n".encode(encoding, "replace").decode(encoding))
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
    console.print("results in out/", soft_wrap=True)
    assert console.width == width
    assert capsys.readouterr().out == "results in out/\n"
