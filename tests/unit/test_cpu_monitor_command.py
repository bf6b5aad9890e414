"""The command of the CPU monitor: how it starts, and how it reports what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.__main__ import main
from tests.support.cpu_recordings import run_monitor
from tests.support.paths import ROOT


@pytest.mark.parametrize("start", [["common/cpu_monitor.py"], ["-m", "common.cpu_monitor"], ["-m", "monitoring"]])
def test_the_command_runs_as_a_script_and_as_a_module(start: list[str]) -> None:
    finished = subprocess.run(
        [sys.executable, *start, "--source", "kubernetes", "--once"],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    # The folder kubernetes/ in the current directory must not hide the package of that name.
    assert finished.returncode == 1
    assert finished.stderr.startswith("cpu_monitor.py: no Kubernetes cluster: ")


def test_the_script_runs_in_any_directory(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "common/cpu_monitor.py"), "compare", "one.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stderr == "cpu_monitor.py: one.csv: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--source", "docker"], "no Docker engine answers"),
        (["--source", "kubernetes"], "no Kubernetes cluster"),
        (["record", "--source", "docker", "--", "true"], "no Docker engine answers"),
        (["--", "true"], "to record a command, write: cpu_monitor.py record -- COMMAND"),
        (["--project", "nosuch", "--once"], "no Docker engine answers"),
        (["--namespace", "nosuch", "--once"], "no Kubernetes cluster"),
        (["compare", "one.csv"], "one.csv: cannot be read: No such file or directory"),
    ],
)
def test_what_is_missing_is_reported_in_one_line_with_exit_code_1(flags: list[str], line: str) -> None:
    finished = run_monitor(*flags)
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"cpu_monitor.py: {line}")
    assert len(finished.stderr.splitlines()) == 1


@pytest.mark.parametrize("interval", ["0", "nan", "1e-320", "1e300"])
def test_an_interval_that_cannot_be_waited_for_is_wrong_usage(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--interval", interval])
    assert ended.value.code == 2
    assert f"'{interval}' is not a number of seconds from 0.001 to 31,622,400" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["record", "--output", "run.txt"], "'run.txt' is neither .csv nor .jsonl; write for example run.csv"),
        (["record", "--output", "folder"], "'folder' is neither .csv nor .jsonl"),
        (["--project", "a", "--namespace", "b"], "give one of them, or --source"),
        (["frob"], "'frob': there is no such word; choose one of record, compare, campaign, scan"),
        (["--json", "compare", "a.csv", "b.csv"], "compare comes first; write: cpu_monitor.py compare .."),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(
    flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
