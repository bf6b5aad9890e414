"""The command as a user calls it: exit codes, the last line and the result folder."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import analysis
from common import version
from common.errors import DataError
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.paths import ROOT
from tests.support.real_data import real_data
from workers.data_loader.inputs import check_network

KEYS = {
    "run_id", "release", "toy", "complete", "problems", "settings", "samples", "categories", "histograms", "window",
    "fit", "timing",
}  # fmt: skip


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
def command(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call the command within this process, in an empty folder, without plots by default; returns the exit code."""

    def call(*flags: str, **variables: str) -> int:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            return analysis.main(flags)
        except SystemExit as ended:  # argparse
            return int(ended.code or 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHE", str(cache))
    monkeypatch.setenv("PLOTS", "0")
    return call


def only_result(folder: Path) -> Path:
    (run_folder,) = (folder / "results").iterdir()
    return run_folder


def test_the_demo_prints_tables_and_writes_every_result_file(tmp_path: Path, cache: Path) -> None:
    done = run(tmp_path, "--release", "demo", "--demo-events", "5000", PLOTS="1", CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    folder = only_result(tmp_path)
    assert lines[0] == f"run {folder.name}"
    assert any(line.startswith(" H→ZZ* (m_H = 125 GeV)") for line in lines)
    for beginning in (
        "Cutflow",
        "115 to 130 GeV: ",
        "signal strength μ = ",
        "Higgs boson's mass: m_H = ",
        "time: files",
    ):
        assert any(line.startswith(beginning) for line in lines)
    assert lines[-1] == f"results in results/{folder.name}/"
    assert f"picture to open: results/{folder.name}/m4l.png" in lines
    files = {path.name for path in folder.iterdir()}
    assert {"result.json", "m4l.png", "m4l.pdf", "histograms.root", "m4l_4e.png", "m4l_4mu.png"} <= files
    result = json.loads((folder / "result.json").read_text())
    assert result.keys() >= KEYS
    assert result["toy"] is True
    assert result["complete"] is True
    read = {name: sample["events_read"] for name, sample in result["samples"].items() if sample["category"] != "data"}
    assert sum(read.values()) == 5000


def test_a_second_demo_reuses_the_files_and_quiet_prints_its_folder_alone(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--release", "demo", "--demo-events", "500", "--samples", "data_A,llll", "--processes", "0")
    assert command(*flags, CACHE=str(tmp_path / "cache")) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.root")}
    assert len(before) == 2
    assert len(capsys.readouterr().out.splitlines()) > 20
    assert command(*flags, "--quiet") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.root")} == before
    folders = {f"results/{path.name}" for path in (tmp_path / "results").iterdir()}
    assert capsys.readouterr().out.splitlines()[-1] in folders


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
        (["--lumi", "-1"], ["--lumi -1: ", "write for example --lumi 10"]),
        (["--fraction", "2"], ["--fraction 2", "--fraction 0.5"]),
        (["--pt-cuts", "20,x"], ["--pt-cuts '20,x'", "'x' is not a number of GeV", "--pt-cuts 20,15,10"]),
        (["--samples", "Zee,Zap"], ["'Zap'", "Zmumu"]),
        (["--release", "2031"], ["'2031'", "demo"]),
        (["--data", "nowhere"], ["--data 'nowhere': no such directory"]),
        (["--data", "."], ["none of the run's files", "Data/data_A.4lep.root; give the directory that holds them"]),
        (["--release", "2025e-13tev-beta", "--data", "no"], ["'no': no such directory; give the one that holds ODEO_"]),
        (["--broker", "http://x"], ["amqp://"]),
        (["--lumy", "1"], ["--lumy: there is no such flag; did you mean '--lumi'?", "--samples"]),
        (["--lumi"], ["--lumi: expected one argument"]),
        (["rnu"], ["'rnu': there is no such word; did you mean 'run'?", "compare"]),
        (["compare", "a", "b", "--jsn"], ["--jsn: there is no such flag; did you mean '--json'?"]),
        (["--release", "demo", "llll"], ["'llll' is not expected here"]),
        (["--processes", "many"], ["'many' is not a number of processes", "--processes 4"]),
        (["--broker", "amqp://127.0.0.1:1", "--processes", "2"], ["--processes", "leave --broker out"]),
        (["--release", "demo", "--output", "/dev/null"], ["--output '/dev/null'", "not a directory"]),
        (["--broker", "amqp://127.0.0.1:1", "--output", "/dev/null"], ["--output '/dev/null'"]),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_value(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: list[str]
) -> None:
    assert command(*flags, COMMAND_NAME="./a-script.sh") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("./a-script.sh: ")
    for text in expected:
        assert text in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_plots_has_every_number_and_no_figure(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results [/bold]"  # a path that is not markup
    flags = ("--release", "demo", "--demo-events", "5000", "--no-plots", "--output", str(output), "--json")
    assert command(*flags, PLOTS="1") == 0
    (folder,) = output.iterdir()
    out, err = capsys.readouterr()
    assert json.loads(out) == {"folder": str(folder)} | json.loads((folder / "result.json").read_text())
    assert f"results in {folder}/" in err
    assert {path.name for path in folder.iterdir()} == {
        "result.json",
        "histograms.root",
        "timeline.json",
        "workspace.json",
    }
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
    assert command("--release", "demo", "--demo-events", "5000", PLOTS="1") == 1
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
    assert {path.name for path in folder.iterdir()} == {
        "result.json",
        "histograms.root",
        "timeline.json",
        "workspace.json",
    }


def test_a_run_with_closed_standard_streams_writes_its_result(tmp_path: Path, cache: Path) -> None:
    """Python leaves the docstrings out, too (-OO), and the width of the terminal is not known (COLUMNS=0)."""
    command = [sys.executable, "-OO", str(ROOT / "analysis.py"), "--release", "demo", "--demo-events", "500"]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command, "--no-plots"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "CACHE": str(cache), "COLUMNS": "0"},
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


def test_an_address_that_cannot_be_reached_is_refused_in_two_lines(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--data", "http://me:secret@127.0.0.1:1/4lep") == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith(
        "analysis.py: http://127.0.0.1:1/4lep/ cannot be reached: no connection to 127.0.0.1 port 1"
    )
    assert second == "analysis.py: without a network, use --release demo, or --data DIR with files that you have"
    assert not out
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_cannot_be_fetched_is_refused_in_two_lines(tmp_path: Path) -> None:
    servers = {"record_urls": ("http://127.0.0.1:1/4lep/",), "other_urls": ("root://localhost:1//4lep/",)}
    offline = replace(ANALYSES["2020e-13tev"], **servers)
    run = ANALYSES.resolve(RunSettings(samples=("data_A", "data_B")))
    refused = "no network: 127.0.0.1, localhost cannot be reached, and 2 files have to be fetched\n.*--data DIR"
    with pytest.raises(DataError, match=refused):
        check_network(offline, run, tmp_path)


def test_a_dry_run_lists_the_files_and_writes_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--data", str(real_data() / "4lep"), "--samples", "data_A,Zmumu", "--fraction", "0.5", "--dry-run")
    assert command(*flags, "--chunk-entries", "10", "--json") == 1
    found = {file["sample"]: file for file in json.loads(capsys.readouterr().out)}
    size = (real_data() / "4lep" / "Data" / "data_A.4lep.root").stat().st_size
    assert [found["data_A"][key] for key in ("state", "bytes", "events", "chunks")] == ["local", size, 19, 2]
    assert found["Zmumu"]["state"] == "missing"
    (tmp_path / "damaged" / "Data").mkdir(parents=True)
    content = (real_data() / "4lep" / "Data" / "data_A.4lep.root").read_bytes()
    (tmp_path / "damaged" / "Data" / "data_A.4lep.root").write_bytes(content[:20_000])
    (tmp_path / "damaged" / "data_B.4lep.root").touch()
    assert command("--data", "damaged", "--samples", "data_A,data_B,data_C", "--dry-run", "--json") == 1
    truncated, empty, missing = json.loads(capsys.readouterr().out)
    assert [file["state"] for file in (truncated, empty, missing)] == ["damaged", "damaged", "missing"]
    assert f"truncated: it has 20000 bytes instead of the {len(content)}" in truncated["problem"]
    assert "data_B.4lep.root: not a ROOT file" in empty["problem"]
    shutil.rmtree(tmp_path / "damaged")
    assert command("--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["llll", "to", "fetch", "179.1", "554,279", "12"] for line in out)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_the_demo_names_the_files_that_a_run_makes(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--release", "demo", "--demo-events", "500", "--samples", "data_A,llll", "--json")
    assert command(*flags, "--dry-run", CACHE=str(tmp_path / "cache")) == 0
    before = json.loads(capsys.readouterr().out)
    assert [file["state"] for file in before] == ["to make", "to make"]
    assert list(tmp_path.iterdir()) == []
    assert command(*flags, "--processes", "0") == 0
    result = json.loads(capsys.readouterr().out)
    assert command(*flags, "--dry-run") == 0
    after = json.loads(capsys.readouterr().out)
    assert [file["location"] for file in before] == [file["location"] for file in after]
    for file in after:
        assert (file["state"], file["bytes"]) == ("made", Path(file["location"]).stat().st_size)
        assert file["events"] == result["samples"][file["sample"]]["events_read"]


def test_the_help_lists_every_flag_of_the_readme_and_the_other_way_round(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--help") == 0
    text = capsys.readouterr().out
    flags = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE))
    text = " ".join(text.split())
    assert "'': no cuts; the release's own by default (PT_CUTS) --" in text
    assert "--no-plots draw no plots; the numbers and histograms are written (PLOTS=0) --" in text
    tables = re.findall(r"^\|.*?`(--[a-z-]+)[ `].*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert flags - {"--help"} <= set(tables)
    assert command("--version") == 0
    assert capsys.readouterr().out.startswith(version.VERSION)


def test_a_command_checks_its_settings_before_it_imports_what_reads_arrays(tmp_path: Path) -> None:
    code = "import analysis, sys; analysis.main(['--data', 'nowhere']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "no such directory" in done.stderr
    assert not {"awkward", "uproot", "matplotlib", "scipy", "pika"} & set(done.stdout.split())


@pytest.mark.parametrize("script", ["analysis.py", "common/cpu_monitor.py"])
def test_without_the_packages_one_command_that_installs_them_is_named(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{Path(script).name}: the package ")
    assert line.endswith(f"install all packages with: {sys.executable} -m pip install -r {ROOT / 'requirements.txt'}")
