"""Leave a run on a broker that was followed: detach from it, or cancel it."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from common import settings
from common.errors import PipelineError
from common.interrupts import INTERRUPTED, PROGRAM, Signals, program
from common.settings import BrokerSettings
from common.submission import BROKER_CONNECT_TIMEOUT_S, cancel
from common.transport.rabbitmq import RabbitMQTransport


def leave(broker: BrokerSettings, run_id: str, digest: str, arrived: Signals) -> NoReturn:
    """Ask whether to detach from the run or to cancel it, do that, and exit with 130.

    Without a terminal, after another interrupt, and after SIGTERM, it detaches.
    """
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if arrived.numbers == [signal.SIGINT] and _wants_to_cancel(run_id):
            how = cancel(RabbitMQTransport(broker, BROKER_CONNECT_TIMEOUT_S), run_id, digest)
            print(f"{program()}: run {run_id}: {how}", file=sys.stderr)
            raise SystemExit(INTERRUPTED)
    except KeyboardInterrupt:
        pass
    except PipelineError as error:
        print(f"{program()}: run {run_id} could not be cancelled: {error}", file=sys.stderr)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print(f"{program()}: run {run_id} goes on; follow it with: {_command(broker, run_id)}", file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def _wants_to_cancel(run_id: str) -> bool:
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"\nrun {run_id}: [d]etach, and it goes on, or [c]ancel it? [d] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("c", "cancel")


def _command(broker: BrokerSettings, run_id: str) -> str:
    """Return the command that follows a run, without the password. Other scripts have their own broker."""
    if not program().endswith((PROGRAM, "local-run.sh")):
        return f"{program()} follow {run_id}"
    known = settings.read(os.environ).broker.password == broker.password
    return f"{program()} follow {run_id} --broker {broker}" + ("" if known else ", and RABBITMQ_PASS=the password")
