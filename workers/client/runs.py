"""Run an analysis from Python: embedded in this process, or on the services of a broker."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from common import settings
from common.analyses import Analyses
from common.errors import RunError, SettingsError, WorkerProcessError
from common.messages import CancelRequest
from common.names import choices
from common.progress import RunProgress
from common.result_folder import check_output, write_folder_or_temporary
from common.settings import VARIABLES, Settings
from common.submission import BROKER_CONNECT_TIMEOUT_S, Outcome, follow, new_run_id, open_and_submit
from common.transport import Session, Transport
from physics import ANALYSES
from workers.client.progress import Progress, progress_bars
from workers.client.result import Result

#: How often ``SubmittedRun.result`` updates the bars, in seconds.
UPDATE_S = 0.2


class RunOptions(TypedDict, total=False):
    """The settings of a run: the flags of the command, with ``_`` for ``-``, and with Python's values."""

    analysis: str | Path
    release: str
    data: str | Path
    samples: str | Sequence[str]
    lumi: float
    fraction: float
    pt_cuts: Sequence[float]
    demo_events: int
    chunk_entries: int
    plots: bool


class IncompleteRunError(RunError):
    """A run ended, but a part of its events is missing; ``result`` has the others, and its ``problems`` say why."""

    def __init__(self, result: Result) -> None:
        problems = result.problems
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        rest = "what was analysed is the .result of this error"
        super().__init__(result.run_id, f"is not complete: {problems[0]}{more}; {rest}")
        self.result = result


def run(*, output: str | Path | None = None, progress: bool = True, **options: Unpack[RunOptions]) -> Result:
    """Run an analysis within this process and its worker processes, and return the result.

    Parameters
    ----------
    output
        The directory to write the result folder to; by default nothing is written.
    progress
        Whether to show progress bars, in a terminal or a notebook.
    options
        The settings of the run, named as the command's flags: ``analysis`` (the path of a file of your own),
        ``release``, ``data``, ``samples``, ``lumi``, ``fraction``, ``pt_cuts``, ``demo_events``, ``chunk_entries``
        and ``plots``. One that is not given, or None, is taken from its environment variable, else it has the
        command's default. Plots for the result folder are drawn by default only with ``output``; ``Result.plot``
        draws one at any time.

    Raises SettingsError for a setting that cannot be used, RunError if the run ends without a result, and
    IncompleteRunError, which has the result, if events are missing. A script must call this under
    ``if __name__ == "__main__":``, because worker processes import the script; else WorkerProcessError is raised.
    """
    _check_main_module()
    from workers.data_loader.sources import check_directory
    from workers.embedded import EmbeddedServices

    read = _read(options if output is not None else {"plots": False, **options})
    check_directory(_analyses(read).of(read.run), read.run)
    if output is not None:
        check_output(Path(output))
    run_id = new_run_id(read.run.release)
    with EmbeddedServices(read) as services, progress_bars(len(read.run.samples), wanted=progress) as bars:
        with closing(open_and_submit(services.transport, run_id, read.run)) as session:
            outcome = follow(session, run_id, _analyses(read), bars, services.is_alive, settings=read.run)
        services.is_alive()
    if output is not None and outcome.problem is None:
        folder, problem = write_folder_or_temporary(outcome.files, Path(output), run_id)
        if problem is not None:
            warnings.warn(f"{problem}; the results are in {folder}; move them from there", stacklevel=2)
    return _result(outcome, run_id)


def submit(broker: str, **options: Unpack[RunOptions]) -> SubmittedRun:
    """Submit a run to the services of a broker, for example ``amqp://user:password@host``.

    Returns when the broker has accepted the request. ``options`` are those of ``run``; ``data`` is a directory or
    an address that the data-loader can read, and the services must have the same file of an ``analysis`` of your own.
    Raises SettingsError for a setting that cannot be used, and BrokerError if no broker answers or it refuses.
    """
    from common.transport.rabbitmq import RabbitMQTransport

    read = _read(options)
    run_id = new_run_id(read.run.release)
    transport = RabbitMQTransport(read.broker.with_url(broker), BROKER_CONNECT_TIMEOUT_S)
    return SubmittedRun(transport, open_and_submit(transport, run_id, read.run), run_id, read)


class SubmittedRun:
    """A run on the services of a broker. A thread follows it until it ends or ``close`` is called.

    As a context manager it closes itself, which does not end the run.
    """

    def __init__(self, transport: Transport, session: Session, run_id: str, read: Settings) -> None:
        self.run_id = run_id
        self._transport = transport
        self._run, self._analyses = read.run, _analyses(read)
        self._state = _State(len(read.run.samples))
        self._closed = threading.Event()
        self._outcome: Future[Outcome] = Future()
        self._thread = threading.Thread(target=self._follow, args=(session,), name=f"follow {run_id}", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self._state.progress_so_far

    def done(self) -> bool:
        """Whether the run has ended."""
        return self._outcome.done()

    def result(self, timeout: float | None = None, *, progress: bool = True) -> Result:
        """Wait until the run ends, and return its result; may be called again.

        Shows progress bars as ``run`` does. Raises TimeoutError after ``timeout`` seconds, while the run goes on,
        BrokerError if the broker refuses, and the errors of a run as ``run`` does.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with progress_bars(len(self._run.samples), wanted=progress and not self.done()) as bars:
            while not wait([self._outcome], UPDATE_S if end is None else min(UPDATE_S, end - time.monotonic())).done:
                bars.show(self.progress)
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"run {self.run_id} has not ended after {timeout:g} s; it goes on")
            bars.show(self.progress)
        self._thread.join()
        if self._closed.is_set() and self._outcome.result().result is None:
            raise RunError(self.run_id, "is not followed any more: its handle was closed")
        return _result(self._outcome.result(), self.run_id)

    def cancel(self) -> None:
        """Cancel the run, unless it has ended; returns when the broker has accepted the request.

        ``result`` then raises RunError. What waits in the queues of the run is dropped when its turn comes; a file
        that is being fetched or a chunk that is being read is finished first.
        """
        with closing(self._transport.open([])) as session:
            session.publish([CancelRequest(self.run_id, self._run.digest)])

    def close(self) -> None:
        """Stop following the run, which goes on."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SubmittedRun {self.run_id}: {'ended' if self.done() else self.progress}>"

    def _follow(self, session: Session) -> None:
        try:
            with closing(session):
                outcome = follow(
                    session,
                    self.run_id,
                    self._analyses,
                    self._state,
                    lambda: not self._closed.is_set(),
                    settings=self._run,
                )
            self._outcome.set_result(outcome)
        except BaseException as error:
            self._outcome.set_exception(error)


class _State:
    """A display that keeps the progress for other threads to read."""

    def __init__(self, samples: int) -> None:
        self.progress_so_far = Progress(samples)

    def progress(self, run: RunProgress) -> None:
        events = {stage: done.events for stage, done in run.stages.items()}
        self.progress_so_far = replace(
            self.progress_so_far, samples_opened=len(run.planned), total_events=run.total_events, events=events, note=""
        )

    def note(self, text: str) -> None:
        self.progress_so_far = replace(self.progress_so_far, note=text)

    def result(self, document: Mapping[str, Any]) -> None: ...


def _check_main_module() -> None:
    """Check that worker processes can be started, which import the program's main module.

    Exits if this is a worker process that imports a script without a guard: the process that started it raises the
    error. Raises WorkerProcessError if there is no file to import.
    """
    # multiprocessing imports the script under this name, and sets the parent process after that.
    if sys.modules["__mp_main__"].__name__ == "__mp_main__" and multiprocessing.parent_process() is None:
        raise SystemExit(1)
    if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
        raise WorkerProcessError(
            "worker processes cannot import a program that is read from standard input; save it as a file, "
            "or use python -c or an interactive session"
        )


def _read(options: Mapping[str, Any]) -> Settings:
    """Read the settings as the command does, with the options as its flags; raises SettingsError."""
    known = {variable.name.lower() for variable in VARIABLES if variable.flag is not None} - {"output"}
    for name in options:
        if name not in known:
            raise SettingsError(f"a run has no setting {name!r}; {choices(name, sorted(known))}")
    flags = {name.upper(): _text(value) for name, value in options.items() if value is not None}
    read = settings.read(os.environ, flags)
    return replace(read, run=_analyses(read).resolve(read.run))


def _analyses(read: Settings) -> Analyses:
    return ANALYSES.in_folder(read.analyses)


def _text(value: object) -> str:
    """Write a value as the command's flag has it."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    return ",".join(map(str, value))


def _result(outcome: Outcome, run_id: str) -> Result:
    if outcome.problem is not None or outcome.result is None:
        raise RunError(run_id, f"failed: {outcome.problem}")
    result = Result(outcome.result, outcome.files)
    if not result.complete:
        raise IncompleteRunError(result)
    return result
