"""Functions that tests call in worker processes, which import them by name."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import MessageError
from common.messages import ChunkTask
from common.settings import Settings
from physics import ANALYSES
from workers import chunk_worker
from workers.analysis.statistics.fit_pool import FitAnswer


def nothing() -> None: ...


def fail_to_prepare() -> None:
    raise ImportError("no module of this name")


def double(number: int) -> int:
    return 2 * number


def refuse(text: str) -> None:
    raise MessageError(text)


def exit_at_once() -> None:
    os._exit(3)


def never_end() -> None:
    threading.Event().wait()


def die_once(mark: Path) -> str:
    """Kill its own process the first time."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def exit_on_entry_300(
    settings: Settings, task: bytes, *args: Any, **kwargs: Any
) -> Sequence[chunk_worker.EncodedMessage]:
    """Process a chunk; the one with entry 300 of llll ends the process."""
    message = ChunkTask.decode(task, ANALYSES)
    if message.chunk.sample == "llll" and message.chunk.start <= 300 < message.chunk.stop:
        exit_at_once()
    return chunk_worker.process_chunk(settings, task, *args, **kwargs)


# --- in place of a fit --------------------------------------------------------


FIT = {"signal_strength": 1.5, "signal_strength_error": 0.5}


def find_fit(result: Mapping[str, Any]) -> FitAnswer:
    return json.dumps(FIT), None


def find_no_minimum(result: Mapping[str, Any]) -> FitAnswer:
    return None, "the fit does not converge: x"


def fail_to_fit(result: Mapping[str, Any]) -> FitAnswer:
    raise ValueError("a matrix is singular")


def exit_in_fit(result: Mapping[str, Any]) -> FitAnswer:
    os._exit(3)


def fit_without_end(result: Mapping[str, Any]) -> FitAnswer:
    never_end()
    return None, None


class DieOnce:
    """Find a fit, but kill the process of the first attempt."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, result: Mapping[str, Any]) -> FitAnswer:
        die_once(self.mark)
        return find_fit(result)
