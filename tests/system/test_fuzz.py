"""Decoding of hostile messages, in a process with a memory limit that detects any code that they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def fuzz(folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.fuzz_messages", "--seconds", str(seconds), "--seed", "7"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.long)])
def test_every_hostile_message_is_rejected_or_valid_within_64_mib(tmp_path: Path, seconds: int) -> None:
    done = fuzz(tmp_path, seconds)
    assert done.returncode == 0, done.stderr
    found = re.match(r"(\d+) messages: (\d+) rejected, (\d+) valid", done.stdout)
    assert found is not None
    assert int(found[2]) > 0
    assert int(found[3]) > 0, "a flipped bit of an energy is no error"
    assert not list(tmp_path.iterdir())


UNGUARDED = """
import pickle, sys
from common import array_pickle
from tests.support import fuzz_messages

checked_loads = array_pickle.loads

def unchecked_loads(body):
    pickle.loads(body)
    return checked_loads(body)

array_pickle.loads = unchecked_loads
sys.argv[1:] = ["--seconds", "5"]
fuzz_messages.main()
"""


def test_the_fuzzer_detects_decoding_that_runs_pickles(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", UNGUARDED]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "kept in hostile-1-" in done.stderr
