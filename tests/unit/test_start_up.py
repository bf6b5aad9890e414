"""What the command does not import before it needs it: these packages take from 0.1 to 1 s to import."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.paths import ROOT

#: Run in a new process, in this order, because nothing is imported twice.
STEPS = """
import json, sys
from contextlib import redirect_stdout, suppress

after = {}
import analysis

with suppress(SystemExit), redirect_stdout(sys.stderr):
    analysis.main(["--help"])
after["help"] = list(sys.modules)

import common.transport.rabbitmq, workers.command.cancel, workers.command.dead_letters
import workers.command.follow, workers.command.leave, workers.command.runs
from common.settings import RunSettings
from common.submission import follow, open_and_submit
from common.transport.embedded import EmbeddedTransport
from physics import ANALYSES

run = ANALYSES.resolve(RunSettings(release="demo"))
session = open_and_submit(EmbeddedTransport(), "run", run)
follow(session, "run", ANALYSES, None, lambda: False, settings=run)
after["submission"] = list(sys.modules)

import workers.data_loader.inputs, workers.data_loader.sources
after["first line"] = list(sys.modules)
print(json.dumps(after))
"""
ARRAYS = {"numpy", "awkward", "uproot", "hist", "scipy", "pyhf", "matplotlib", "mplhep"}


def test_help_submission_and_the_first_line_import_no_arrays_and_no_plots() -> None:
    command = [sys.executable, "-c", STEPS]
    after = json.loads(subprocess.check_output(command, cwd=ROOT, text=True, stderr=subprocess.DEVNULL))
    assert not (ARRAYS | {"pika", "requests"}) & set(after["help"])
    assert not (ARRAYS | {"requests"}) & set(after["submission"])
    assert not ARRAYS & set(after["first line"])
