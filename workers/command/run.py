"""``analysis.py [run]``: run an analysis within this process, or submit it to a broker and follow it."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from common import interrupts, settings
from common.analyses import Analyses
from common.display import Bars
from common.interrupts import program
from common.logs import configure_logging
from common.result_folder import check_output, write_folder_or_temporary
from common.settings import VARIABLES, Settings
from common.submission import BROKER_CONNECT_TIMEOUT_S, Outcome, follow, new_run_id, open_and_submit
from common.transport import Transport
from physics import ANALYSES
from workers.command.leave import leave

DESCRIPTION = """\
Run an analysis of ATLAS Open Data.

Without --broker the four services run inside this one command. With it the run
is submitted to that RabbitMQ, where the services wait, and followed here."""
COMPLETE, INCOMPLETE = 0, 1
#: How many problems are printed; result.json has all of them.
SHOWN_PROBLEMS = 4


def run(arguments: Sequence[str], console: Console) -> int:
    """Run one analysis with the settings of the flags and the environment; returns the exit code."""
    flags = _parser().parse_args(arguments)
    read = settings.read(os.environ, vars(flags))
    read = replace(read, run=_analyses(read).resolve(read.run))
    configure_logging(read.log_level if "LOG_LEVEL" in os.environ else "WARNING")
    run_id = new_run_id(read.run.release)
    return (_distributed if flags.broker else _embedded)(read, flags.broker, run_id, console)


def _analyses(read: Settings) -> Analyses:
    return ANALYSES.in_folder(read.analyses)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program(), description=DESCRIPTION, allow_abbrev=False)
    for variable in VARIABLES:
        if variable.flag is not None:
            shown = f"{variable.what} ({variable.name}, default: {variable.default or 'none'})"
            if variable.metavar is None:
                parser.add_argument(variable.flag, dest=variable.name, action="store_const", const="0", help=shown)
            else:
                parser.add_argument(variable.flag, dest=variable.name, metavar=variable.metavar, help=shown)
    parser.add_argument("--broker", metavar="amqp://..", help="submit the run to this RabbitMQ and follow it")
    parser.epilog = (
        "analysis.py runs, follow, cancel --help: the runs of a broker; "
        "analysis.py dead-letters --help: list and requeue the messages that could not be handled; "
        "analysis.py check --help: check the file of an own analysis; "
        "analysis.py compare --help: compare results"
    )
    return parser


def _distributed(read: Settings, broker: str, run_id: str, console: Console) -> int:
    from common.transport.rabbitmq import RabbitMQTransport

    settings = read.broker.with_url(broker)
    with interrupts.noted(signal.SIGINT, signal.SIGTERM) as interrupted:
        transport = RabbitMQTransport(settings, BROKER_CONNECT_TIMEOUT_S, interrupted)
        check_output(read.output)
        outcome = _submit_and_follow(transport, read, run_id, console, lambda: not interrupted.is_set())
        if interrupted.is_set():
            leave(settings, run_id, read.run.digest, interrupted)
        return report(outcome, read.output, run_id, console)


def _embedded(read: Settings, broker: None, run_id: str, console: Console) -> int:
    # Imported before interrupts are noted: until then, one ends the process at once.
    from workers.data_loader.sources import check_directory
    from workers.embedded import EmbeddedServices

    check_directory(_analyses(read).of(read.run), read.run)
    with interrupts.noted(signal.SIGINT) as interrupted:
        check_output(read.output)
        with EmbeddedServices(read) as services:
            outcome = _submit_and_follow(
                services.transport, read, run_id, console, lambda: services.is_alive() and not interrupted.is_set()
            )
            if interrupted.is_set():
                logging.disable()  # the services report what they cannot finish
                raise KeyboardInterrupt
        return report(outcome, read.output, run_id, console)


def _submit_and_follow(
    transport: Transport, read: Settings, run_id: str, console: Console, is_alive: Callable[[], bool]
) -> Outcome:
    with closing(open_and_submit(transport, run_id, read.run)) as session:
        console.print(f"run {run_id}")
        with Bars(console, len(read.run.samples)) as bars:
            return follow(session, run_id, _analyses(read), bars, is_alive, settings=read.run)


def report(outcome: Outcome, output: Path, run_id: str, console: Console) -> int:
    """Write the folder of a run that has ended, and print how it ended; returns the exit code."""
    if outcome.problem is not None:
        print(f"{program()}: run {run_id} failed: {outcome.problem}", file=sys.stderr)
        return INCOMPLETE
    folder, not_written = write_folder_or_temporary(outcome.files, output, run_id)
    console.print(f"results in {folder}/", soft_wrap=True)
    problems: Sequence[str] = outcome.result["problems"] if outcome.result is not None else ()
    if not_written:
        print(f"{program()}: {not_written}; the results are in {folder}/; move them from there", file=sys.stderr)
    if not problems:
        return INCOMPLETE if not_written else COMPLETE
    for problem in problems[1:SHOWN_PROBLEMS]:
        print(f"{program()}: {problem}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"{program()}: and {len(problems) - SHOWN_PROBLEMS} more problems, in result.json", file=sys.stderr)
    state = "is complete, but" if outcome.result and outcome.result["complete"] else "is not complete:"
    print(f"{program()}: run {run_id} {state} {problems[0]}", file=sys.stderr)
    return INCOMPLETE
