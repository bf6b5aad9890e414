"""``analysis.py follow``: follow a run of a broker, and write its result folder when it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from common import interrupts, settings, topology
from common.display import Bars
from common.errors import RunError
from common.interrupts import program
from common.messages import RunSummary, StatusRequest
from common.result_folder import check_output
from common.submission import BROKER_CONNECT_TIMEOUT_S, FOLLOWER_PREFETCH, follow, list_runs
from common.transport import Transport
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from workers.command.leave import leave
from workers.command.run import report
from workers.command.runs import broker_of, broker_parser

#: How many other runs the error of an unknown run names.
NAMED = 3


def run(arguments: Sequence[str], console: Console) -> int:
    """Follow a run; returns the exit code of the run."""
    parser = broker_parser("follow", "Follow a run of a broker, also one that has ended, and write its result folder.")
    parser.add_argument("run_id", metavar="RUN_ID", help="the run")
    parser.add_argument("--output", metavar="DIR", help="the directory of result folders (OUTPUT)")
    flags = parser.parse_args(arguments)
    broker, read = broker_of(flags), settings.read(os.environ)
    output = Path(flags.output) if flags.output else read.output
    transport = RabbitMQTransport(broker, BROKER_CONNECT_TIMEOUT_S)
    summary = find(transport, flags.run_id)
    with interrupts.noted(signal.SIGINT, signal.SIGTERM) as interrupted:
        check_output(output)
        with closing(transport.open([topology.follower(flags.run_id)], FOLLOWER_PREFETCH)) as session:
            session.publish([StatusRequest(flags.run_id)])
            with Bars(console, summary.samples) as bars:
                analyses = ANALYSES.in_folder(read.analyses)
                outcome = follow(session, flags.run_id, analyses, bars, lambda: not interrupted.is_set())
        if interrupted.is_set():
            leave(broker, flags.run_id, summary.digest, interrupted)
        return report(outcome, output, flags.run_id, console)


def find(transport: Transport, run_id: str) -> RunSummary:
    """Return a run of the list of runs; raises RunError if it is not there."""
    runs = list_runs(transport)
    for one in runs:
        if one.run_id == run_id:
            return one
    latest = ", ".join(one.run_id for one in runs[:NAMED])
    known = f"the latest are {latest}; {program()} runs lists them" if latest else "there are none"
    raise RunError(run_id, f"is not among the runs of this broker: {known}")
