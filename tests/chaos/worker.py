"""Run one service so that it can be ordered to die at a named point: ``python -m tests.chaos.worker analysis ORDER``.

A service's own code knows nothing of this: what stands between two steps that
matter is wrapped here. An order is a file, ``ORDER``, with a point's name and
how many more times it is to be passed; whoever gets there takes the order away
and kills itself, as kill -9 would.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika.connection

from common import result_folder
from common.transport.publishing import Publisher
from common.transport.rabbitmq import RabbitMQSession

#: Seconds. Short, so that a process is held for longer than this within a test.
HEARTBEAT_S = 2

OF_EVERY_SERVICE = (
    "before publish",
    "after publish",
    "before confirm",
    "after confirm",
    "before acknowledge",
    "after acknowledge",
)
OF_THE_ANALYSIS = ("before commit", "after commit")
OF_THE_VISUALISATION = ("before the folder is in place", "after the folder is in place")


class Orders:
    """Reads the order at every point, and obeys it."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._passed = 0

    def reach(self, point: str) -> None:
        """Die here, if that is the order."""
        try:
            wanted, passages = self._order.read_text().rsplit(":", 1)
        except FileNotFoundError:
            self._passed = 0
            return
        if wanted != point:
            return
        self._passed += 1
        if self._passed < int(passages):
            return
        try:
            self._order.unlink()
        except FileNotFoundError:
            return  # another replica has obeyed
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, step: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """A step with a point on either side."""

        def stepped(*arguments: Any) -> Any:
            self.reach(before)
            done = step(*arguments)
            self.reach(after)
            return done

        return stepped

    def watch_session(self) -> None:
        """Points around publishing, the broker's confirms, and acknowledging."""
        finish = RabbitMQSession._finish
        acknowledging = self.around(finish, "before acknowledge", "after acknowledge")

        def finished(session: RabbitMQSession, settlement: Any) -> None:
            of_a_delivery = settlement.token is not None and settlement.token[1]
            (acknowledging if of_a_delivery else finish)(session, settlement)

        Publisher._publish = self.around(Publisher._publish, "before publish", "after publish")
        Publisher._on_confirm = self.around(Publisher._on_confirm, "before confirm", "after confirm")
        RabbitMQSession._finish = finished

    def watch_store(self) -> None:
        """Points around the commit of the analysis database."""
        from workers.analysis.store import Store

        transaction = Store._transaction

        @contextmanager
        def watched(store: Store) -> Iterator[Any]:
            with transaction(store) as database:
                yield database
                self.reach("before commit")
            self.reach("after commit")

        Store._transaction = watched

    def watch_folder(self) -> None:
        """Points around the renaming that puts a result folder in place."""
        result_folder._replace = self.around(result_folder._replace, *OF_THE_VISUALISATION)


def main(service: str, order: str) -> None:
    pika.connection.Connection._tune_heartbeat_timeout = staticmethod(lambda client_value, server_value: HEARTBEAT_S)
    orders = Orders(Path(order))
    orders.watch_session()
    if service == "analysis":
        orders.watch_store()
    if service == "visualisation":
        orders.watch_folder()
    runpy.run_module(f"workers.{service}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
