#!/usr/bin/env python3
"""Rediscover the Higgs boson in H→ZZ*→4ℓ with ATLAS Open Data.

Without --broker the four services run inside this one command. With it the run
is submitted to that RabbitMQ, where the services wait, and followed here.

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

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from common import settings
from common.errors import (
    AnalysisError,
    BrokerError,
    DataError,
    PipelineError,
    ResultError,
    RunError,
    SettingsError,
    WorkerProcessError,
)
from common.settings import VARIABLES, Settings

if TYPE_CHECKING:
    from rich.console import Console

    from common.analyses import Analyses
    from common.submission import Outcome
    from common.transport import Transport
    from workers.client import IncompleteRunError, Result, SubmittedRun, load, run, submit

#: What Python code uses; the errors are all PipelineErrors.
__all__ = [
    "AnalysisError", "BrokerError", "DataError", "IncompleteRunError", "PipelineError", "Result", "ResultError",
    "RunError", "SettingsError", "SubmittedRun", "WorkerProcessError", "load", "run", "submit",
]  # fmt: skip

# Worker processes import this module, too, so the functions import what only the command needs.

COMPLETE, INCOMPLETE, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
#: How many problems are printed; result.json has all of them.
SHOWN_PROBLEMS = 4


def __getattr__(name: str) -> Any:
    """Import a part of the Python interface when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one analysis with the settings of the flags and the environment; returns the exit code."""
    from common.display import tolerant_output

    with tolerant_output():
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: Sequence[str]) -> int:
    from common.display import output_console
    from common.logs import configure_logging
    from common.submission import new_run_id

    console = output_console()
    try:
        if arguments[:1] == ["dead-letters"]:
            return _dead_letters(arguments[1:], console)
        if arguments[:1] == ["check"]:
            return _check(arguments[1:], console)
        if arguments[:1] == ["compare"]:
            from common.comparison import command

            return command.run(arguments[1:], console)
        flags = _parser().parse_args(arguments)
        read = settings.read(os.environ, vars(flags))
        read = replace(read, run=_analyses(read).resolve(read.run))
        configure_logging(read.log_level if "LOG_LEVEL" in os.environ else "WARNING")
        run_id = new_run_id(read.run.release)
        outcome = (_distributed if flags.broker else _embedded)(read, flags.broker, run_id, console)
        return _report(outcome, read, run_id, console)
    except SettingsError as error:
        print(f"analysis.py: {error}", file=sys.stderr)
        return WRONG_USAGE
    except PipelineError as error:
        print(f"analysis.py: {error}", file=sys.stderr)
        return INCOMPLETE
    except KeyboardInterrupt:
        print("analysis.py: interrupted", file=sys.stderr)
        return INTERRUPTED


def _analyses(read: Settings) -> Analyses:
    from physics import ANALYSES

    return ANALYSES.in_folder(read.analyses)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="analysis.py", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    for variable in VARIABLES:
        if variable.flag is not None:
            shown = f"{variable.what} ({variable.name}, default: {variable.default or 'none'})"
            if variable.metavar is None:
                parser.add_argument(variable.flag, dest=variable.name, action="store_const", const="0", help=shown)
            else:
                parser.add_argument(variable.flag, dest=variable.name, metavar=variable.metavar, help=shown)
    parser.add_argument("--broker", metavar="amqp://..", help="submit the run to this RabbitMQ and follow it")
    parser.epilog = (
        "analysis.py dead-letters --help: list and requeue the messages that could not be handled; "
        "analysis.py check --help: check the file of an own analysis; "
        "analysis.py compare --help: compare results"
    )
    return parser


def _dead_letters(arguments: Sequence[str], console: Console) -> int:
    from common.display import dead_letters_table
    from common.transport.dead_letters import dead_letters, requeue

    parser = argparse.ArgumentParser(
        prog="analysis.py dead-letters",
        description="List the messages that no service could handle, and requeue them.",
        allow_abbrev=False,
    )
    parser.add_argument("--broker", metavar="amqp://..", help="the RabbitMQ (default: RABBITMQ_HOST and the others)")
    parser.add_argument("--run", metavar="RUN_ID", help="only the messages of this run")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--requeue", action="store_true", help="move the listed messages back to the queues they came from"
    )
    flags = parser.parse_args(arguments)
    broker = settings.read(os.environ).broker
    if flags.broker:
        broker = broker.with_url(flags.broker)
    found = (requeue if flags.requeue else dead_letters)(broker, flags.run)
    if flags.json:
        print(json.dumps([asdict(dead_letter) for dead_letter in found], indent=2))
    elif found:
        console.print(dead_letters_table(found))
    if not flags.json:
        console.print(f"{len(found)} dead letters{' requeued' if flags.requeue else ''}")
    return COMPLETE


def _check(arguments: Sequence[str], console: Console) -> int:
    from pathlib import Path

    parser = argparse.ArgumentParser(
        prog="analysis.py check",
        description="Check the file of an own analysis: import it, and try its functions on events of the demo.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the Python file")
    file = parser.parse_args(arguments).file
    from workers.check import check

    try:
        checked = check(file, settings.read(os.environ).cache)
    except AnalysisError as error:
        print(f"analysis.py: {error}", file=sys.stderr)
        return INCOMPLETE
    for one in checked:
        if one.tried_on is None:
            console.print(f"{one.release}: its functions were not tried, because no toy release has its samples")
        elif not one.mistakes:
            counts = ", ".join(f"{step} {events:,}" for step, events in one.cutflow.items())
            tried = f"tried on {', '.join(one.samples)} of {one.tried_on}"
            console.print(f"{one.release}, {tried}: {counts}", soft_wrap=True)
    mistakes = dict.fromkeys(mistake for one in checked for mistake in one.mistakes)  # each once for all releases
    for mistake in mistakes:
        print(f"analysis.py: {mistake}", file=sys.stderr)
    if mistakes:
        return INCOMPLETE
    console.print(f"{file}: no mistakes found", soft_wrap=True)
    return COMPLETE


def _distributed(read: Settings, broker: str, run_id: str, console: Console) -> Outcome:
    from common.result_folder import check_output
    from common.submission import BROKER_CONNECT_TIMEOUT_S
    from common.transport.rabbitmq import RabbitMQTransport

    transport = RabbitMQTransport(read.broker.with_url(broker), BROKER_CONNECT_TIMEOUT_S)
    check_output(read.output)
    return _submit_and_follow(transport, read, run_id, console, lambda: True)


def _embedded(read: Settings, broker: None, run_id: str, console: Console) -> Outcome:
    from common.result_folder import check_output
    from workers.data_loader.sources import check_directory
    from workers.embedded import EmbeddedServices

    check_directory(_analyses(read).of(read.run), read.run)
    check_output(read.output)
    with EmbeddedServices(read) as services:
        return _submit_and_follow(services.transport, read, run_id, console, services.is_alive)


def _submit_and_follow(
    transport: Transport, read: Settings, run_id: str, console: Console, is_alive: Callable[[], bool]
) -> Outcome:
    from common.display import Bars
    from common.submission import follow, open_and_submit

    with closing(open_and_submit(transport, run_id, read.run)) as session:
        console.print(f"run {run_id}")
        with Bars(console, len(read.run.samples)) as bars:
            return follow(session, run_id, _analyses(read), bars, is_alive, settings=read.run)


def _report(outcome: Outcome, read: Settings, run_id: str, console: Console) -> int:
    if outcome.problem is not None:
        print(f"analysis.py: run {run_id} failed: {outcome.problem}", file=sys.stderr)
        return INCOMPLETE
    from common.result_folder import write_folder_or_temporary

    folder, not_written = write_folder_or_temporary(outcome.files, read.output, run_id)
    console.print(f"results in {folder}/", soft_wrap=True)
    problems: Sequence[str] = outcome.result["problems"] if outcome.result is not None else ()
    if not_written:
        print(f"analysis.py: {not_written}; the results are in {folder}/; move them from there", file=sys.stderr)
    if not problems:
        return INCOMPLETE if not_written else COMPLETE
    for problem in problems[1:SHOWN_PROBLEMS]:
        print(f"analysis.py: {problem}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"analysis.py: and {len(problems) - SHOWN_PROBLEMS} more problems, in result.json", file=sys.stderr)
    state = "is complete, but" if outcome.result and outcome.result["complete"] else "is not complete:"
    print(f"analysis.py: run {run_id} {state} {problems[0]}", file=sys.stderr)
    return INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
