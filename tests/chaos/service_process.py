"""Run one service that can be killed at a named point: ``python -m tests.chaos.service_process analysis ORDER``.

The points are set by wrapping public functions of pika, sqlite3, os and the
store, so that the service's own code has none. ``ORDER`` is a file with the
name of a point and how many times it is to be passed before. The process at this
point deletes the file and kills itself with SIGKILL.
"""

from __future__ import annotations

import os
import runpy
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pika.channel import Channel

from common.transport import amqp

#: Seconds. Short, so that a fault can outlast it.
HEARTBEAT_S = 2

COMMON_POINTS = (
    "before publish",
    "after publish",
    "before confirm",
    "after confirm",
    "before acknowledge",
    "after acknowledge",
)
ANALYSIS_POINTS = ("before commit", "after commit")
VISUALISATION_POINTS = ("before the folder is in place", "after the folder is in place")


class KillPoints:
    """Reads the order at every point, and executes it."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._passed = 0

    def pass_point(self, point: str) -> None:
        """Kill this process, if the order names this point."""
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
            return  # another replica was killed
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """Wrap a function with a point before it and one after it."""

        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            self.pass_point(before)
            result = function(*arguments, **keywords)
            self.pass_point(after)
            return result

        return wrapped

    def wrap_channel(self) -> None:
        """Set the points around publishing, the broker's confirms, and acknowledgements."""
        confirm_delivery = Channel.confirm_delivery

        def with_points(channel: Channel, on_confirm: Callable[..., Any]) -> Any:
            return confirm_delivery(channel, self.around(on_confirm, "before confirm", "after confirm"))

        Channel.confirm_delivery = with_points
        Channel.basic_publish = self.around(Channel.basic_publish, "before publish", "after publish")
        Channel.basic_ack = self.around(Channel.basic_ack, "before acknowledge", "after acknowledge")

    def wrap_database(self) -> None:
        """Set the points around a commit of the analysis database."""
        points = self

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
                execute = super().execute
                if statement == "COMMIT":
                    execute = points.around(execute, "before commit", "after commit")
                return execute(statement, *parameters)

        connect = sqlite3.connect
        sqlite3.connect = lambda *arguments, **keywords: connect(*arguments, factory=Connection, **keywords)

    def wrap_rename(self) -> None:
        """Set the points around the renaming of a folder, by which a result folder is put in place."""
        for name in ("rename", "replace"):
            setattr(os, name, self._around_folders(getattr(os, name)))

    def _around_folders(self, rename: Callable[..., None]) -> Callable[..., None]:
        wrapped = self.around(rename, *VISUALISATION_POINTS)

        def renamed(source: Any, target: Any, **keywords: Any) -> None:
            (wrapped if os.path.isdir(source) else rename)(source, target, **keywords)

        return renamed


def main(service: str, order: str) -> None:
    amqp.HEARTBEAT_S = HEARTBEAT_S
    points = KillPoints(Path(order))
    points.wrap_channel()
    if service == "analysis":
        points.wrap_database()
    if service == "visualisation":
        points.wrap_rename()
    runpy.run_module(f"workers.{service}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _, *arguments = sys.argv
    del sys.argv[1:]  # the service itself has none
    main(*arguments)
