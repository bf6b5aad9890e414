"""``analysis.py cancel``: cancel a run of a broker."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from common.cancellations import CANCELLED
from common.interrupts import program
from common.submission import BROKER_CONNECT_TIMEOUT_S, cancel
from common.transport.rabbitmq import RabbitMQTransport
from workers.command.runs import broker_parser, find, read_settings

#: The exit codes: the run is cancelled, or it had ended before.
IS_CANCELLED, HAS_ENDED = 0, 1


def run(arguments: Sequence[str], console: Console) -> int:
    """Cancel a run; returns the exit code."""
    parser = broker_parser(
        "cancel", "Cancel a run of a broker: what waits in the queues of the run is dropped, and it has no result."
    )
    parser.add_argument("run_id", metavar="RUN_ID", help="the run")
    flags = parser.parse(arguments)
    transport = RabbitMQTransport(read_settings(flags).broker, BROKER_CONNECT_TIMEOUT_S)
    summary = find(transport, flags.run_id)
    how = cancel(transport, flags.run_id, summary.digest)
    if how == CANCELLED:
        console.print(f"run {flags.run_id} is cancelled", soft_wrap=True)
        return IS_CANCELLED
    print(f"{program()}: run {flags.run_id} is not cancelled: {how}", file=sys.stderr)
    return HAS_ENDED
