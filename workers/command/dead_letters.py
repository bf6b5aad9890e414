"""``analysis.py dead-letters``: list the messages that no service could handle, and requeue them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from common import settings
from common.arguments import Parser
from common.display import dead_letter_lines
from common.transport.dead_letters import dead_letters, requeue


def run(arguments: Sequence[str], console: Console) -> int:
    """List or requeue dead letters; returns the exit code."""
    parser = Parser(
        "dead-letters",
        description="List the messages that no service could handle, and requeue them.",
    )
    parser.add_argument("--broker", metavar="amqp://..", help="the RabbitMQ (default: RABBITMQ_HOST and the others)")
    parser.add_argument("--run", metavar="RUN_ID", help="only the messages of this run")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--requeue", action="store_true", help="move the listed messages back to the queues they came from"
    )
    flags = parser.parse(arguments)
    broker = settings.read(os.environ).broker
    if flags.broker:
        broker = broker.with_url(flags.broker)
    found = (requeue if flags.requeue else dead_letters)(broker, flags.run)
    if flags.json:
        print(json.dumps([asdict(dead_letter) for dead_letter in found], indent=2))
    else:
        for line in (line for dead_letter in found for line in dead_letter_lines(dead_letter)):
            console.print(line, soft_wrap=True)
    if not flags.json:
        console.print(f"{len(found)} dead letters{' requeued' if flags.requeue else ''}")
    return 0
