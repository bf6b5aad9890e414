"""Run one service as a process, on RabbitMQ."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext

from common import settings
from common.errors import BrokerError, DatabaseError, SettingsError
from common.health import ServiceMetrics, listen
from common.logs import configure_logging
from common.memory import keep_freed_memory
from common.service import Service, serve
from common.settings import Settings
from common.transport.rabbitmq import RabbitMQTransport

log = logging.getLogger(__name__)


def main(make: Callable[[Settings], Service]) -> int:
    """Run the service that ``make`` returns until SIGTERM or SIGINT; returns the exit code.

    0: it was stopped; 1: the broker refused it, its database cannot be used any more, or its port is taken;
    2: a setting cannot be used. Exits with 2 for an argument, because there are none.
    """
    argparse.ArgumentParser(
        prog=f"python -m {make.__module__.removesuffix('.service')}",
        description=(make.__doc__ or "").partition("\n")[0],
        epilog="Its settings are environment variables, which README.md lists under Configuration.",
    ).parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        read = settings.read(os.environ)
        configure_logging(read.log_level)
        keep_freed_memory()
        service = make(read)
        log.info("%s starts", service.name)
        metrics = ServiceMetrics(service.name)
        with listen(metrics, read.metrics_port, read.metrics_host) if read.metrics_port else nullcontext():
            session = RabbitMQTransport(read.broker, stop=stop).open(
                service.consumes, alone_as=service.name if service.is_single else None
            )
            serve(service, session, stop, metrics)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (BrokerError, DatabaseError, OSError) as error:
        print(error, file=sys.stderr)
        return 0 if stop.is_set() else 1
    log.info("%s has stopped", service.name)
    return 0
