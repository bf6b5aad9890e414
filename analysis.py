#!/usr/bin/env python3
"""Rediscover the Higgs boson in H→ZZ*→4ℓ with ATLAS Open Data.

Without --broker the four services run inside this one command. With it the run
is submitted to that RabbitMQ, where the services wait, and followed here.

    analysis.py runs [--broker amqp://..] [--json]
    analysis.py follow RUN_ID [--broker amqp://..] [--output DIR]
    analysis.py cancel RUN_ID [--broker amqp://..]

lists the runs of a broker, follows one of them until its result folder is written, and cancels one.

    analysis.py dead-letters [--broker amqp://..] [--run RUN_ID] [--json] [--requeue]

lists the messages that could not be handled, and requeues them once the cause is fixed.

    analysis.py check FILE

checks the file of an own analysis, and tries it on events of the demo.

    analysis.py compare A B [..] [--json]

compares results, and says whether they are the same bits, or what differs.

In Python, ``import analysis`` has ``run``, ``submit`` and ``load``, which give a ``Result``:

    result = analysis.run(release="demo")
    result.histograms, result.cutflow, result.yields, result.fit, result.plot(result.figures[0])
"""

from __future__ import annotations

import importlib
import os
import sys

if __name__ == "__main__" and (here := os.path.dirname(os.path.realpath(__file__))) not in sys.path:
    sys.path.insert(0, here)  # Python's switches -I and -P and PYTHONSAFEPATH leave this directory out

from common import interrupts

if __name__ == "__main__":
    interrupts.exit_at_once()

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.errors import (
    AnalysisError,
    BrokerError,
    DataError,
    PipelineError,
    ResultError,
    RunError,
    SettingsError,
    WorkerProcessError,
    missing_package,
)
from common.names import choices

if TYPE_CHECKING:
    from workers.client import IncompleteRunError, Result, SubmittedRun, load, run, submit

#: What Python code uses; the errors are all PipelineErrors.
__all__ = [
    "AnalysisError", "BrokerError", "DataError", "IncompleteRunError", "PipelineError", "Result", "ResultError",
    "RunError", "SettingsError", "SubmittedRun", "WorkerProcessError", "load", "run", "submit",
]  # fmt: skip

# Worker processes import this module, too, so the functions import what only the command needs.

#: The words of the command, and the module of each: its function ``run`` takes the arguments after the word.
WORDS = {
    "run": "workers.command.run",
    "runs": "workers.command.runs",
    "follow": "workers.command.follow",
    "cancel": "workers.command.cancel",
    "dead-letters": "workers.command.dead_letters",
    "check": "workers.command.check",
    "compare": "common.comparison.command",
}
INCOMPLETE, WRONG_USAGE = 1, 2


def __getattr__(name: str) -> Any:
    """Import a part of the Python interface when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a word of the command, by default ``run``; returns the exit code."""
    try:
        from common.display import tolerant_output

        with tolerant_output():
            return _main(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        print(f"{interrupts.program()}: {missing_package(error)}", file=sys.stderr)
        return INCOMPLETE


def _main(arguments: Sequence[str]) -> int:
    from common.display import output_console, print_problem

    try:
        word, *rest = arguments if arguments and not arguments[0].startswith("-") else ("run", *arguments)
        if word not in WORDS:
            raise SettingsError(f"{word!r}: there is no such word; {choices(word, WORDS)}")
        command = importlib.import_module(WORDS[word])
        return int(command.run(rest, output_console()))
    except SettingsError as error:
        print_problem(str(error))
        return WRONG_USAGE
    except PipelineError as error:
        print_problem(str(error))
        return INCOMPLETE
    except KeyboardInterrupt:
        print_problem("interrupted")
        return interrupts.INTERRUPTED


if __name__ == "__main__":
    interrupts.end(main())
