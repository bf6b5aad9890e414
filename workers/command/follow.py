"""``analysis.py follow``: follow a run of a broker, and write its result folder when it ends."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from common import interrupts, topology
from common.display import Bars
from common.errors import RunError
from common.messages import StatusRequest
from common.result_folder import check_output
from common.submission import BROKER_CONNECT_TIMEOUT_S, FOLLOWER_PREFETCH, follow
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from workers.command.leave import leave
from workers.command.run import Folder
from workers.command.runs import broker_parser, find, read_settings


def run(arguments: Sequence[str], console: Console) -> int:
    """Follow a run; returns the exit code of the run."""
    parser = broker_parser("follow", "Follow a run of a broker, also one that has ended, and write its result folder.")
    parser.add_argument("run_id", metavar="RUN_ID", help="the run")
    parser.add_argument("--output", metavar="DIR", help="the directory of result folders (OUTPUT)")
    flags = parser.parse(arguments)
    read = read_settings(flags)
    output = Path(flags.output) if flags.output else read.output
    folder = Folder(output, flags.run_id, console)
    transport = RabbitMQTransport(read.broker, BROKER_CONNECT_TIMEOUT_S)
    summary = find(transport, flags.run_id)
    if summary.has_no_result:
        raise RunError(summary.run_id, f"has no result: {summary.problem or 'it was deleted (RESULTS_KEEP)'}")
    with interrupts.noted(signal.SIGINT, signal.SIGTERM) as interrupted:
        check_output(output)
        with closing(transport.open([topology.follower(flags.run_id)], FOLLOWER_PREFETCH)) as session:
            session.publish([StatusRequest(flags.run_id)])
            analyses = ANALYSES.in_folder(read.analyses)
            if summary.state == "waiting":
                console.print(f"run {flags.run_id} waits for a data-loader", soft_wrap=True)
            with Bars(console, summary.samples or None, analyses, from_submission=False) as bars:
                outcome = follow(
                    session,
                    flags.run_id,
                    analyses,
                    bars,
                    lambda: not interrupted.is_set(),
                    first_files=folder.write_first,
                )
        if interrupted.is_set():
            leave(read.broker, flags.run_id, summary.digest, interrupted)
        return folder.write(outcome)
