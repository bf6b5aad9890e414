"""End a command in order when it is interrupted from the keyboard (SIGINT) or terminated (SIGTERM).

Python's own KeyboardInterrupt can be raised at any line, for example while a process is started or a folder is
renamed, and is lost in some places of the import system.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from common.errors import PipelineError

INTERRUPTED = 130
PROGRAM = "analysis.py"


def program() -> str:
    """Return the name of the command in messages: that of the script which has called it, if it says so."""
    return os.environ.get("COMMAND_NAME") or PROGRAM


def exit_at_once() -> None:
    """End the process with one line on standard error at an interrupt, until ``noted`` is used.

    Call this only while the process has nothing to release: no worker process and no temporary folder.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: nohup, a shell's ``&``
        signal.signal(signal.SIGINT, _exit)


def end(code: int) -> NoReturn:
    """Exit; without waiting for threads that still work if the code is INTERRUPTED."""
    if code == INTERRUPTED:
        os._exit(code)
    sys.exit(code)


def _exit(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):  # standard error may be closed
        os.write(2, f"{program()}: interrupted\n".encode())
    os._exit(INTERRUPTED)


class Signals(threading.Event):
    """Is set when a signal has arrived; ``numbers`` has those that have, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def arrive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. ``set`` is called once, because its lock is not reentrant."""
        self.numbers.append(number)
        if len(self.numbers) == 1:
            self.set()


@contextmanager
def noted(*numbers: signal.Signals) -> Iterator[Signals]:
    """Set the returned event when one of the signals arrives, within the block; nothing else happens.

    Raises KeyboardInterrupt at the end of the block if one has arrived. Signals that are ignored stay ignored. In a
    thread other than the main thread, the event is never set.
    """
    arrived = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, arrived.arrive)
    try:
        yield arrived
    except PipelineError:
        if not arrived.is_set():  # else the error is that the work was stopped
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived.is_set():
        raise KeyboardInterrupt
