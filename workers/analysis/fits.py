"""Fits that are under way, one after the other, each in a process of its own.

A fit takes seconds of pure Python, which in this process would hold up the
chunks of other runs; its process holds up nothing, may be killed at any time,
and takes the memory of pyhf with it. Nothing of a fit is kept here but what is
asked for again after a restart.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

log = logging.getLogger(__name__)

#: A fit takes a few seconds, on a crowded machine a minute; one that takes this long will not end.
TIMEOUT_S = 600.0
_COMMAND = (sys.executable, "-m", "workers.analysis.fit")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fitted:
    """A result document without its fit, and the fit, or in words why there is none."""

    result: Mapping[str, Any]
    fit: Mapping[str, Any] | None
    problem: str | None


class _KilledError(RuntimeError):
    """A signal ended the process."""


class Fits:
    """Starts fits in the order they are asked for, and has each one's outcome once it is done."""

    def __init__(self, command: tuple[str, ...] = _COMMAND, timeout_s: float = TIMEOUT_S) -> None:
        self._command, self._timeout_s = command, timeout_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fit")
        self._under_way: dict[str, Future[Fitted]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = Lock()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._under_way

    def start(self, run_id: str, result: Mapping[str, Any]) -> None:
        """Have a run's result document fitted, unless that is under way."""
        if run_id not in self._under_way:
            self._under_way[run_id] = self._pool.submit(self._fit, run_id, result)

    def done(self) -> dict[str, Fitted]:
        """The outcomes that are there, by run; each until it is forgotten."""
        return {run_id: future.result() for run_id, future in self._under_way.items() if future.done()}

    def forget(self, run_id: str) -> None:
        """An outcome has been taken."""
        del self._under_way[run_id]

    def close(self) -> None:
        """End what is under way."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _fit(self, run_id: str, result: Mapping[str, Any]) -> Fitted:
        try:
            answer = json.loads(self._ask(json.dumps(result).encode()))
            return Fitted(result, answer["fit"], answer["problem"])
        except Exception as error:  # whatever went wrong, the run ends without a fit and says so
            log.error("the fit of run %s failed: %s", run_id, error)
            return Fitted(result, None, f"the fit failed: {error}")

    def _ask(self, question: bytes) -> bytes:
        """The answer of a process; one that is killed, as where memory is short, is begun once more."""
        try:
            return self._answer(question)
        except _KilledError as killed:
            log.warning("the fit is begun again: %s", killed)
            return self._answer(question)

    def _answer(self, question: bytes) -> bytes:
        pipe = subprocess.PIPE
        with self._lock:
            if self._closed:
                raise RuntimeError("the service stops")
            process = subprocess.Popen(  # noqa: S603  our own command
                self._command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=_ROOT
            )
            self._process = process
        try:
            answer, complaint = process.communicate(question, self._timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise RuntimeError(f"it was not done after {self._timeout_s:g} s") from None
        finally:
            with self._lock:
                self._process = None
        if process.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            ended = f"its process ended with code {process.returncode}: {lines[-1]}"
            raise _KilledError(ended) if process.returncode < 0 else RuntimeError(ended)
        return answer
