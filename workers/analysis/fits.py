"""Fits that are under way, one after the other, in a process of their own.

A fit is pure Python, which in this process would hold up the chunks of other
runs; its process holds up nothing and may be killed at any time. It is started
ahead, for importing pyhf takes longer than a fit, and kept for the next one.
Nothing of a fit is kept here but what is asked for again after a restart.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from typing import Any

log = logging.getLogger(__name__)

#: A fit takes less than a second, on a crowded machine several; one that takes this long will not end.
TIMEOUT_S = 600.0
_COMMAND = (sys.executable, "-m", "workers.analysis.statistics.fit")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fitted:
    """A result document without its fit, and the fit, or in words why there is none."""

    result: Mapping[str, Any]
    fit: Mapping[str, Any] | None
    problem: str | None


class Fits:
    """Has fits done in the order they are asked for, and each one's outcome once it is there."""

    def __init__(self, command: tuple[str, ...] = _COMMAND, timeout_s: float = TIMEOUT_S) -> None:
        self._fitter = _Fitter(command, timeout_s)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fit")
        self._under_way: dict[str, Future[Fitted]] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._under_way

    def prepare(self) -> None:
        """Start the process, so that it is ready when there is something to fit."""
        self._fitter.prepare()

    def start(self, run_id: str, result: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Have a run's result document fitted, unless that is under way; ``then`` is called when it is done."""
        if run_id not in self._under_way:
            self._under_way[run_id] = fitted = self._pool.submit(self._fit, run_id, result)
            fitted.add_done_callback(lambda _: then())

    def done(self) -> dict[str, Fitted]:
        """The outcomes that are there, by run; each until it is forgotten."""
        return {run_id: future.result() for run_id, future in self._under_way.items() if future.done()}

    def forget(self, run_id: str) -> None:
        """An outcome has been taken."""
        del self._under_way[run_id]

    def close(self) -> None:
        """End what is under way."""
        self._fitter.stop()
        self._pool.shutdown(cancel_futures=True)
        self._fitter.close()

    def _fit(self, run_id: str, result: Mapping[str, Any]) -> Fitted:
        try:
            answer = json.loads(self._fitter.ask(json.dumps(result).encode()))
            return Fitted(result, answer["fit"], answer["problem"])
        except Exception as error:  # whatever went wrong, the run ends without a fit and says so
            log.error("the fit of run %s failed: %s", run_id, error)
            return Fitted(result, None, f"the fit failed: {error}")


class _EndedError(Exception):
    """The process has ended without an answer."""


class _Fitter:
    """The process: a question a line on its standard input, an answer a line on its standard output.

    It ends with its input, that is to say with this process, however that ends.
    """

    def __init__(self, command: tuple[str, ...], timeout_s: float) -> None:
        self._command, self._timeout_s = command, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = Lock()

    def prepare(self) -> None:
        try:
            self._running()
        except OSError as error:
            log.error("fits will fail: %s", error)

    def ask(self, question: bytes) -> bytes:
        """The answer; a process that ends under its question, as one that is killed does, is asked once more."""
        try:
            return self._ask(question)
        except _EndedError as ended:
            log.warning("the fit is begun again: %s", ended)
            return self._ask(question)

    def _ask(self, question: bytes) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = Timer(self._timeout_s, process.kill)
        timer.start()
        try:
            process.stdin.write(question + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
        if answer:
            return answer
        if timed_out:
            raise RuntimeError(f"it was not done after {self._timeout_s:g} s")
        raise _EndedError(f"its process ended with code {process.wait()}; the log of the analysis says why")

    def stop(self) -> None:
        """End the process; whoever waits for its answer waits no longer."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Give back what the process held, once nobody waits for it."""
        if self._process is not None:
            with self._process:
                self._process.kill()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise RuntimeError("the service stops")
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if self._process is None:
                self._process = subprocess.Popen(  # noqa: S603  our own command
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    cwd=_ROOT,
                    start_new_session=True,  # an interrupt at the keyboard is for the service
                )
            return self._process
