"""The arguments of a service: none, because its settings are environment variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")


def start(service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"workers.{service}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("service", SERVICES)
def test_help_says_what_the_service_does_and_where_its_settings_are_listed(service: str) -> None:
    done = start(service, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: python -m workers.{service} [-h]" in done.stdout
    assert "README.md" in done.stdout


def test_an_unknown_argument_is_wrong_usage_and_starts_no_service() -> None:
    done = start("data_processor", "frob", "x")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "python -m workers.data_processor: error: unrecognized arguments: frob x"
