"""``analysis.py runs``: list the runs of a broker."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common import settings
from common.arguments import Parser
from common.display import print_table
from common.errors import RunError
from common.interrupts import program
from common.logs import configure_logging
from common.messages import RunSummary
from common.rounding import with_error
from common.settings import Settings
from common.submission import BROKER_CONNECT_TIMEOUT_S, list_runs
from common.transport import Transport
from common.transport.rabbitmq import RabbitMQTransport

#: The most characters of a problem that the table shows; --json has all of it.
SHOWN_PROBLEM = 60
#: How many other runs the error of an unknown run names.
NAMED = 3


def run(arguments: Sequence[str], console: Console) -> int:
    """Print the runs of a broker; returns the exit code."""
    parser = broker_parser("runs", "List the runs of a broker: the latest, the newest first.")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    flags = parser.parse(arguments)
    broker = read_settings(flags).broker
    runs = [run for run in list_runs(RabbitMQTransport(broker, BROKER_CONNECT_TIMEOUT_S)) if run.state != "deleted"]
    if flags.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
    elif runs:
        print_table(runs_table(runs), console)
    else:
        console.print(f"no runs on {broker}", soft_wrap=True)
    return 0


def broker_parser(word: str, description: str) -> Parser:
    """Return a parser of a word that needs a broker."""
    parser = Parser(word, description=description)
    parser.add_argument("--broker", metavar="amqp://..", help="the RabbitMQ (default: RABBITMQ_HOST and the others)")
    return parser


def read_settings(flags: argparse.Namespace) -> Settings:
    """Read the settings with the broker that the flags name, and configure logging."""
    read = settings.read(os.environ)
    configure_logging(read.log_level if "LOG_LEVEL" in os.environ else "ERROR")
    return replace(read, broker=read.broker.with_url(flags.broker)) if flags.broker else read


def find(transport: Transport, run_id: str) -> RunSummary:
    """Return a run of the list of runs; raises RunError if it is not there."""
    runs = list_runs(transport)
    for one in runs:
        if one.run_id == run_id:
            return one
    latest = ", ".join(one.run_id for one in runs[:NAMED])
    known = f"the latest: {latest}; {program()} runs lists them" if latest else "there are none"
    raise RunError(run_id, f"is not among the runs of this broker: {known}")


def runs_table(runs: Sequence[RunSummary]) -> Table:
    """Return a table with a row for each run."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("run", "state", "release", "analysis"):
        table.add_column(heading, no_wrap=True)
    for heading in ("samples", "μ"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("submitted (UTC)", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("problem", no_wrap=True)
    for one in runs:
        cells = (
            one.run_id,
            one.state,
            one.release,
            one.analysis,
            str(one.samples or ""),
            _signal_strength(one),
            "" if one.submitted is None else f"{datetime.fromtimestamp(one.submitted, UTC):%Y-%m-%d %H:%M:%S}",
            "" if one.seconds is None else _duration(one.seconds),
            "" if one.state == "cancelled" else _shortened(one.problem or ""),
        )
        table.add_row(*map(Text, cells))
    return table


def _signal_strength(run: RunSummary) -> str:
    return "" if run.signal_strength is None else with_error(run.signal_strength, run.signal_strength_error)


def _duration(seconds: float) -> str:
    """Return a time as ``4.2 s``, ``3:05`` or ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _shortened(problem: str) -> str:
    return problem if len(problem) <= SHOWN_PROBLEM else problem[: SHOWN_PROBLEM - 1] + "…"
