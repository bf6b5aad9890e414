"""The command as a user calls it: exit codes, the last line and the result folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import analysis
from tests.support.paths import ROOT
from tests.support.real_data import real_data
from tests.support.workers import Workers

KEYS = {
    "run_id", "release", "toy", "complete", "problems", "settings", "samples", "categories", "histograms", "window",
    "fit", "timing",
}  # fmt: skip
REAL = ["--samples", "data_A,data_B,data_C,Zee,ttbar_lep,WH125_ZZ4lep", "--pt-cuts", "", "--lumi", "10"]


def run(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Call analysis.py in a folder, with only a user's environment and these variables; no plots by default."""
    names = {"PATH", "HOME", "LANG"}
    environment = {name: value for name, value in os.environ.items() if name in names}
    return subprocess.run(
        [sys.executable, ROOT / "analysis.py", *flags],
        cwd=folder,
        env=environment | {"CACHE": str(folder / "cache"), "PLOTS": "0", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command within this process, in an empty folder, without plots by default; returns the exit code."""

    def call(*flags: str, **variables: str) -> int:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            return analysis.main(flags)
        except SystemExit as ended:  # argparse
            return int(ended.code or 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLOTS", "0")
    return call


def only_result(folder: Path) -> Path:
    (run_folder,) = (folder / "results").iterdir()
    return run_folder


def test_the_demo_prints_tables_and_writes_every_result_file(tmp_path: Path) -> None:
    done = run(tmp_path, "--release", "demo", "--demo-events", "5000", PLOTS="1")
    assert done.returncode == 0, done.stderr
    assert "Cutflow" in done.stdout
    assert "Yields" in done.stdout
    folder = only_result(tmp_path)
    assert str(folder.name) in done.stdout
    files = {path.name for path in folder.iterdir()}
    assert {"result.json", "m4l.png", "m4l.pdf", "histograms.root", "m4l_4e.png", "m4l_4mu.png"} <= files
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= KEYS
    assert result["toy"] is True
    assert result["complete"] is True
    read = {name: sample["events_read"] for name, sample in result["samples"].items() if sample["category"] != "data"}
    assert sum(read.values()) == 5000


def test_a_second_demo_reuses_the_files_of_the_first(command: Command, tmp_path: Path) -> None:
    assert command("--release", "demo", "--demo-events", "500") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.root")}
    assert len(before) == 12
    assert command("--release", "demo", "--demo-events", "500") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.root")} == before


@pytest.mark.broker
def test_a_run_through_a_broker_has_the_numbers_of_the_embedded_run(workers: Workers, tmp_path: Path) -> None:
    """The services and the command write to the same folder."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    flags = ["--data", str(real_data() / "4lep"), *REAL]
    assert run(alone, *flags).returncode == 0
    workers.start_all()
    variables = workers.environment()
    url = "amqp://{RABBITMQ_HOST}:{RABBITMQ_PORT}/{RABBITMQ_VHOST}".format(**variables)
    secret = {name: variables[name] for name in ("RABBITMQ_USER", "RABBITMQ_PASS")}
    done = run(together, *flags, "--broker", url, **secret)
    assert done.returncode == 0, done.stderr
    results = [json.loads((only_result(folder) / "result.json").read_text()) for folder in (alone, together)]
    for key in ("samples", "categories", "histograms", "window"):
        assert json.dumps(results[0][key]) == json.dumps(results[1][key])


def test_a_run_with_missing_files_says_so_in_its_last_line_and_result(tmp_path: Path) -> None:
    done = run(tmp_path, "--data", str(real_data() / "4lep"), "--samples", "data_A,data_D,Zmumu")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "is not complete" in last
    assert "4lep.root: no such file" in last
    result = json.loads((only_result(tmp_path) / "result.json").read_text())
    assert result["complete"] is False
    assert len(result["problems"]) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lumi", "-1"], ["LUMI=-1", "LUMI=10"]),
        (["--fraction", "2"], ["FRACTION=2", "FRACTION=0.5"]),
        (["--pt-cuts", "20,x"], ["PT_CUTS='20,x'", "'x' is not a number of GeV", "PT_CUTS=20,15,10"]),
        (["--samples", "Zee,Zap"], ["'Zap'", "Zmumu"]),
        (["--release", "2031"], ["'2031'", "demo"]),
        (["--data", "nowhere"], ["nowhere", "no such directory"]),
        (["--data", "."], ["none of the run's files", "Data/data_A.4lep.root"]),
        (["--broker", "http://x"], ["amqp://"]),
        (["--lumy", "1"], ["--lumy"]),
        (["--release", "demo", "--output", "/dev/null"], ["OUTPUT='/dev/null'", "not a directory", "--output DIR"]),
        (["--broker", "amqp://127.0.0.1:1", "--output", "/dev/null"], ["OUTPUT='/dev/null'", "--output DIR"]),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_value(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: list[str]
) -> None:
    assert command(*flags) == 2
    error = capsys.readouterr().err
    for text in expected:
        assert text in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_plots_has_every_number_and_no_figure(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results [/bold]"  # a path that is not markup
    flags = ("--release", "demo", "--demo-events", "5000", "--no-plots", "--output", str(output))
    assert command(*flags, PLOTS="1") == 0
    (folder,) = output.iterdir()
    assert f"results in {folder}/" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"result.json", "histograms.root", "workspace.json"}
    assert json.loads((folder / "result.json").read_text())["settings"]["plots"] is False


def test_an_environment_variable_acts_as_its_flag(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(RELEASE="demo", DEMO_EVENTS="500", FRACTION="0.5") == 0
    assert json.loads((only_result(tmp_path) / "result.json").read_text())["settings"]["fraction"] == 0.5
    assert command(PT_CUTS="20,x") == 2
    assert "PT_CUTS='20,x'" in capsys.readouterr().err


def test_a_closed_pipe_in_latin_1_costs_the_display_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patched, os.fdopen(writer, "w", encoding="latin-1") as closed:
        patched.setattr(sys, "stdout", closed)
        patched.setattr(sys, "stderr", closed)
        code = command("--release", "demo", "--demo-events", "500")
    assert code == 0
    assert json.loads((only_result(tmp_path) / "result.json").read_text())["complete"] is True


def test_a_run_whose_figures_cannot_be_drawn_has_every_other_file_and_exit_code_1(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "mplhep.py").write_text("raise ImportError('libfreetype is missing')")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert command("--release", "demo", "--demo-events", "3000", PLOTS="1") == 1
    out, err = capfd.readouterr()
    assert out.count("Cutflow") == 1
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    folder = only_result(tmp_path)
    assert last.startswith(f"analysis.py: run {folder.name} is complete, but figures m4l, m_z1, ")
    assert last.endswith(" cannot be drawn: ImportError: libfreetype is missing")
    result = json.loads((folder / "result.json").read_text())
    assert result["complete"] is True
    assert result["problems"] == [last.partition(", but ")[2]]
    assert {path.name for path in folder.iterdir()} == {"result.json", "histograms.root", "workspace.json"}


def test_a_run_with_closed_standard_streams_writes_its_result(tmp_path: Path) -> None:
    """Python leaves the docstrings out, too (-OO), and the width of the terminal is not known (COLUMNS=0)."""
    command = [sys.executable, "-OO", str(ROOT / "analysis.py"), "--release", "demo", "--demo-events", "500"]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command, "--no-plots"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "CACHE": str(tmp_path / "cache"), "COLUMNS": "0"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads((only_result(tmp_path) / "result.json").read_text())["complete"] is True


def test_a_result_that_cannot_be_written_goes_to_a_temporary_folder_that_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, temporary = tmp_path / "results", tmp_path / "temporary"
    temporary.mkdir()

    class Display(io.StringIO):
        """Replaces the output directory by a file when the run has begun."""

        def write(self, text: str) -> int:
            if output.is_dir():
                shutil.rmtree(output)
                output.touch()
            return super().write(text)

    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "stdout", Display())
    assert command("--release", "demo", "--demo-events", "500") == 1
    (folder,) = temporary.glob("*/*")
    assert json.loads((folder / "result.json").read_text())["complete"] is True
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"analysis.py: {Path('results') / folder.name} cannot be written: ")
    assert last.endswith(f"; the results are in {folder}/; move them from there")


def test_a_broker_that_does_not_answer_is_one_line_of_error(tmp_path: Path) -> None:
    done = run(tmp_path, "--broker", "amqp://127.0.0.1:1", "--release", "demo")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "analysis.py: no RabbitMQ answers at amqp://atlas@127.0.0.1:1 (Connection refused); is it running, and is "
        "--broker (RABBITMQ_HOST, RABBITMQ_PORT) right?"
    )
    assert len(done.stderr.strip().splitlines()) <= 2


def test_without_a_network_the_error_names_the_address_and_alternatives(tmp_path: Path) -> None:
    done = run(tmp_path, "--data", "http://127.0.0.1:1/4lep", "--samples", "data_A")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    for text in ("http://127.0.0.1:1/4lep/Data/data_A.4lep.root", "--data DIR", "--release demo"):
        assert text in last
