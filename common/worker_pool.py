"""A process pool that replaces worker processes which exit."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, ParamSpec, TypeVar

from common.errors import WorkerProcessError
from common.memory import keep_freed_memory, memory_bytes

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

#: A worker process needs up to 280 MB; the rest is for the services, the page cache and others.
BYTES_PER_PROCESS = 512 * 2**20
#: How long a worker process may take to leave a call before it is killed: one that runs no Python code cannot leave.
EXIT_S = 5.0


class _Context(SpawnContext):
    """Spawns processes, and keeps them: a fork of a process with threads can deadlock, and macOS has no safe one."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        """Return a new process, for the executor to start."""
        self.spawned.append(SpawnProcess(*args, **kwargs))
        return self.spawned[-1]


@dataclass(frozen=True)
class _Processes:
    """An executor, and the writing end of a pipe: worker processes leave their calls and exit when that is closed."""

    executor: ProcessPoolExecutor
    context: _Context
    lifeline: Connection
    under_way: set[Future[Any]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a call, which is under way until it has an outcome.

        Raises BrokenExecutor after ``end``, otherwise as ``ProcessPoolExecutor.submit``.
        """
        with self.lock:
            if self.lifeline.closed:
                raise BrokenExecutor
            future = _submit(self.executor, _call, function, *args, **kwargs)
            self.under_way.add(future)
        future.add_done_callback(self.under_way.discard)
        return future

    def end(self, *, wait_for_exit: bool) -> None:
        """End the calls under way, and kill the worker processes.

        One that is killed while it sends an outcome would leave half of it, and the executor would wait for the rest
        without end. Idle ones, and those that are starting without a call, would take longer to exit by themselves.
        """
        with self.lock:
            self.lifeline.close()
        try:
            wait(self.under_way, EXIT_S)
        finally:
            for process in self.context.spawned:
                if process.pid is not None:
                    process.kill()
            self.executor.shutdown(wait=wait_for_exit)


class WorkerPool:
    """Calls functions in worker processes; any thread may call.

    If a worker process exits, all processes of the pool are replaced and the
    calls that were under way are made again, from then on one at a time, so that
    a call which ends its process does not take others with it.

    Parameters
    ----------
    processes
        The number of worker processes.
    attempts
        How often a call is made whose worker process exits.
    prepare
        A function of a module that is called first in each worker process, to
        import what the calls need, for example. An error of it is ignored: the
        calls that need what it prepares raise their own.
    timeout_s
        How long a call may take, in seconds.
    """

    def __init__(
        self, processes: int, *, attempts: int, prepare: Callable[[], None], timeout_s: float | None = None
    ) -> None:
        self._number, self._attempts, self._prepare, self._timeout_s = processes, attempts, prepare, timeout_s
        self._lock, self._one_at_a_time = threading.RLock(), threading.Lock()
        self._was_replaced = self._start_failed = self._closed = False
        self._processes = self._started = self._make()
        self._starting: list[Future[None]] = []

    def start(self, processes: int | None = None) -> None:
        """Start ``processes`` worker processes, by default all, unless that was done; returns before they are ready.

        The others start with the calls that need them.

        Raises RuntimeError in a worker process that imports a script without
        ``if __name__ == "__main__":`` around the call, OSError where the system
        has no room for another process.
        """
        with self._lock:
            if not self._starting:
                self._started = self._processes
                number = self._number if processes is None else processes
                self._starting = [_submit(self._started.executor, _do_nothing) for _ in range(number)]

    def wait_until_ready(self) -> None:
        """Wait for the worker processes that were started; raises as ``check_start``."""
        while not self.check_start():
            wait(self._starting)

    def check_start(self) -> bool:
        """Return whether the worker processes that were started are ready.

        Starts them once more if one exited before it was ready; raises
        WorkerProcessError if that happens again.
        """
        with self._lock:
            done = [started.exception() for started in self._starting if started.done()]
            if not any(isinstance(error, BrokenExecutor) for error in done):
                return len(done) == len(self._starting)
            if self._start_failed:
                raise WorkerProcessError(
                    "a worker process exited while it was starting: it was killed, or it could not import the script "
                    'that runs the pipeline, which must do so under if __name__ == "__main__":'
                )
            self._start_failed = True
            self._replace(self._started)
            number, self._starting = len(self._starting), []
            self.start(number)
            return False

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function of a module in a worker process; returns what it returns and raises what it raises.

        Raises WorkerProcessError if the worker process exits in every attempt, the
        call takes longer than ``timeout_s``, or the pool is closed.
        """
        for _ in range(self._attempts):
            with self._one_at_a_time if self._was_replaced else nullcontext():
                processes, future = self._begin(function, *args, **kwargs)
                if not wait([future], self._timeout_s).done:
                    self._replace(processes)
                    raise WorkerProcessError(f"it was not done after {self._timeout_s:g} s")
                if not isinstance(future.exception(), BrokenExecutor):
                    return future.result()
                self._replace(processes)
                self.check_start()
        raise WorkerProcessError(f"its worker process exited {self._attempts} times")

    def close(self) -> None:
        """End the worker processes, whatever they are doing, and the calls under way."""
        with self._lock:
            self._closed = True
            self._processes.end(wait_for_exit=True)

    def _begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[_Processes, Future[T]]:
        """Submit a call to the worker processes, replacing those that exited before it."""
        while True:
            processes = self._processes
            try:
                return processes, processes.submit(function, *args, **kwargs)
            except RuntimeError as error:
                if not isinstance(error, BrokenExecutor) and processes is self._processes and not self._closed:
                    raise
                self._replace(processes)

    def _replace(self, processes: _Processes) -> None:
        """Replace worker processes, unless another thread did; raises WorkerProcessError if the pool is closed."""
        with self._lock:
            if self._closed:
                raise WorkerProcessError("the worker processes were ended")
            if processes is not self._processes:
                return
            log.warning("the worker processes are replaced, because one exited or took too long")
            self._was_replaced = True
            self._processes = self._make()
        processes.end(wait_for_exit=False)

    def _make(self) -> _Processes:
        context = _Context()
        reading_end, writing_end = context.Pipe(duplex=False)
        executor = ProcessPoolExecutor(
            1 if self._was_replaced else self._number, context, _initialize, (reading_end, self._prepare)
        )
        return _Processes(executor, context, writing_end)


def available_cores() -> int:
    """Return the number of cores that this process may use; on macOS, which has no limit for a process, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """Return how many worker processes to start: one for each core, at most one for each 512 MiB of memory."""
    return max(1, min(available_cores(), memory_bytes() // BYTES_PER_PROCESS))


def _submit(executor: ProcessPoolExecutor, function: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
    """Submit a call; a process that is started for it ignores an interrupt from the keyboard from its first moment."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(function, *args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


#: Held by a worker process except during its calls, so that it does not exit while it sends an outcome.
_between_calls = threading.Lock()


def _initialize(reading_end: Connection, prepare: Callable[[], None]) -> None:
    _between_calls.acquire()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    threading.Thread(target=_exit_with_pool, args=(reading_end,), daemon=True).start()
    keep_freed_memory()
    with suppress(Exception):  # it would end the process, and its traceback would be printed for each process
        _call(prepare)


def _call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a worker process, which exits meanwhile if its pool is closed."""
    _between_calls.release()
    try:
        return function(*args, **kwargs)
    finally:
        _between_calls.acquire()


def _exit_with_pool(reading_end: Connection) -> None:
    """Exit during a call when the pool is closed."""
    reading_end.poll(None)  # nothing is ever written
    with _between_calls:
        os._exit(1)


def _exit_with_parent() -> None:
    """Exit when the process that has the pool has exited."""
    parent = parent_process()
    assert parent is not None, "a worker process has a parent"
    parent.join()
    os._exit(1)


def _do_nothing() -> None:
    """Show that a worker process is ready."""
