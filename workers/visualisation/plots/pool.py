"""A pool of processes that draw figures: matplotlib is not thread-safe, and a core draws one figure at a time."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from common.errors import MessageError

log = logging.getLogger(__name__)

DPI = 150
#: A result has fourteen figures or so: more processes would not draw them faster.
MAX_PROCESSES = 8
ATTEMPTS = 2


class DrawingPool:
    """Draws figures in processes, one per core that this process may use. Safe to use from several threads.

    The processes start with the first figure, or with ``start``. A pool of which
    a process exited is replaced by a new one.
    """

    def __init__(self, processes: int | None = None) -> None:
        self._processes = processes or min(_cores(), MAX_PROCESSES)
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the processes, unless they are running; returns at once."""
        if self._executor is None:
            for _ in range(self._processes):
                self.submit(os.getpid)

    def draw(self, result: Mapping[str, Any], figures: Sequence[str]) -> dict[str, bytes]:
        """Draw figures of a result as png and pdf; returns the files by name.

        If a process exits meanwhile, all figures are drawn once more. Raises
        MessageError if that fails too, or if a histogram is not valid.
        """
        for _ in range(ATTEMPTS):
            drawings = [self.submit(draw_files, result, figure, ("png", "pdf"), DPI) for figure in figures]
            try:
                return {name: file for drawing in drawings for name, file in drawing.result().items()}
            except BrokenProcessPool:
                log.warning("run %s: a process that draws figures exited", result.get("run_id"))
        raise MessageError(
            f"run {result.get('run_id')}: its figures cannot be drawn; a process that draws them exited "
            f"{ATTEMPTS} times: it may need more memory"
        )

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        """Call a function in a process of the pool."""
        with self._lock:
            if self._executor is None:
                self._executor = self._new_executor()
            try:
                return self._executor.submit(function, *arguments)
            except BrokenProcessPool:
                self._executor = self._new_executor()
                return self._executor.submit(function, *arguments)

    def close(self) -> None:
        """Stop the processes; figures that have not been started are not drawn."""
        with self._lock:
            if self._executor is not None:
                self._executor.shutdown(wait=False, cancel_futures=True)

    def _new_executor(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, mp_context=spawn, initializer=_initialise)


def draw_files(result: Mapping[str, Any], figure: str, formats: Sequence[str], dpi: int) -> dict[str, bytes]:
    """Draw a figure of a result, a histogram's or one of the fit, and return its files by name."""
    from workers.visualisation.plots.fit import FIGURES
    from workers.visualisation.plots.stack import figure_bytes, histogram_figure

    drawn = FIGURES[figure](result) if figure in FIGURES else histogram_figure(result, figure)
    return {f"{figure}.{kind}": figure_bytes(drawn, kind, dpi) for kind in formats}


def _initialise() -> None:
    """Prepare a process: import matplotlib, ignore Ctrl-C, and exit when the parent process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import workers.visualisation.plots.fit  # noqa: F401


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    """Return the number of cores that this process may use; macOS does not say, so that it is all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
