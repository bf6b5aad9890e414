"""An interrupt from the keyboard, or SIGTERM, ends the command with one line and no process or part of a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from common.interrupts import Signals, noted
from common.settings import BrokerSettings
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from workers.command.leave import leave

#: The process imports packages when it has more memory than Python alone, of about 10 MB.
IMPORTING_BYTES = 20_000_000


def importing(process: psutil.Process, output: IO[str]) -> None:
    wait_until(lambda: process.memory_info().rss > IMPORTING_BYTES, "packages were imported")


def making_the_demo(process: psutil.Process, output: IO[str]) -> None:
    assert output.readline().startswith("run ")


def drawing(process: psutil.Process, output: IO[str]) -> None:
    while "signal strength" not in output.readline():
        pass


def interrupt(command: subprocess.Popen[str]) -> None:
    """Interrupt the command and its worker processes, as the terminal does."""
    os.killpg(command.pid, signal.SIGINT)


def terminate(command: subprocess.Popen[str]) -> None:
    command.terminate()


@pytest.mark.parametrize(
    ("moment", "end"),
    [
        (importing, interrupt),
        (making_the_demo, interrupt),
        (making_the_demo, terminate),
        pytest.param(drawing, interrupt, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_ends_the_command_with_one_line_and_leaves_at_most_its_first_picture(
    tmp_path: Path,
    moment: Callable[[psutil.Process, IO[str]], None],
    end: Callable[[subprocess.Popen[str]], None],
) -> None:
    with subprocess.Popen(
        [sys.executable, ROOT / "analysis.py", "--release", "demo", "--demo-events", "2000"],
        cwd=tmp_path,
        env=os.environ | {"CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout is not None
        process = psutil.Process(command.pid)
        moment(process, command.stdout)
        children = process.children(recursive=True)
        end(command)
        _, error = command.communicate(timeout=60)
    assert error == "analysis.py: interrupted\n"
    assert command.returncode == 130
    wait_until(lambda: not any(child.is_running() for child in children), "all processes have ended")
    left = {path.name for path in tmp_path.glob("results/*/*")}
    assert left in (set(), {"result.json", "m4l.png", "m4l.pdf"} if moment is drawing else set())
    assert len(list(tmp_path.glob("results/*"))) == bool(left)


def test_a_termination_detaches_from_a_run_without_asking(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with suppress(KeyboardInterrupt), noted(signal.SIGTERM) as arrived:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(arrived.is_set, "the signal had arrived")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit) as ended:
        leave(BrokerSettings("broker", password="secret"), "run", "", arrived)
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        "analysis.py: run run goes on; follow it with: "
        "analysis.py follow run --broker amqp://atlas@broker:5672, and RABBITMQ_PASS=the password\n"
    )


def test_a_script_that_calls_the_command_is_named_in_its_messages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMAND_NAME", "./docker-run.sh")
    with pytest.raises(SystemExit):
        leave(BrokerSettings("broker"), "run", "", Signals())
    assert capsys.readouterr().err == "./docker-run.sh: run run goes on; follow it with: ./docker-run.sh follow run\n"
