"""The visualisation service: draws finished runs, writes and publishes their result files, and serves the web page."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

from common.errors import MessageError, Unavailable
from common.messages import (
    TIMELINE,
    FetchProgress,
    FirstFiles,
    Message,
    Progress,
    QueueStatus,
    Result,
    ResultFiles,
    RunFailed,
    RunStarted,
    ServiceStatus,
    StatusRequest,
)
from common.result_folder import write_folder
from common.service import Service
from common.settings import Settings
from physics import ANALYSES
from workers.visualisation.archive import RESULT, Archive
from workers.visualisation.page import PageServer
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.page.usage import with_usage
from workers.visualisation.plots.pool import DrawingPool, Drawings
from workers.visualisation.result_files import figures_of, files_without_figures, result_files, with_visualisation

log = logging.getLogger(__name__)

#: The pause after a folder could not be written, before the next attempt to write one.
RETRY_S = 1.0
#: The number of drawn runs that wait in memory for a folder that can be written; a run has about 2 MB of files.
MAX_UNWRITTEN = 100
#: Why a result has no fit that is written with its first figure.
WITHOUT_FIT = "the folder was written before the fit"
#: The parts of a result that the fit and the visualisation change.
_CHANGED_LATER = ("fit", "fit_problem", "timing", "provenance")


class Visualisation(Service):
    """Makes the result files of every final result.

    Without ``keep``, it publishes the files but does not write them: whoever receives them does. It serves the page on
    PAGE_PORT, if that is set; ``page_port`` overrides it, and 0 is any free port. Without ``keep``, it serves the page
    only with ``page_port``.
    """

    name: ClassVar[str] = "visualisation"
    is_single: ClassVar[bool] = True
    reports_queues: ClassVar[bool] = True

    def __init__(
        self, settings: Settings, *, keep: bool = True, pool: DrawingPool | None = None, page_port: int | None = None
    ) -> None:
        self.analyses = ANALYSES.in_folder(settings.analyses, self.name)
        self._output: Path | None = settings.output if keep else None
        self._archive = Archive(settings.output)
        self._results_keep = settings.results_keep
        self._pool, self._closes_pool = pool or DrawingPool(analyses=settings.analyses), pool is None
        #: Waits for the figures, so that the loop handles the status of services meanwhile.
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="result-files")
        self._live: LiveRuns | None = None
        self._page: PageServer | None = None
        self._has_requested_status = False
        #: A result before its fit, its histograms, and its files with the first figure until they are published.
        self._drawn_before_fit: tuple[Mapping[str, Any], Drawings] = ({}, {})
        self._first_files: Future[FirstFiles] | None = None
        #: The results and files of the runs whose folder could not be written, the next to be tried first.
        self._unwritten: OrderedDict[str, tuple[Mapping[str, Any], dict[str, bytes]]] = OrderedDict()
        self._next_write = 0.0
        if page_port is None and keep and settings.page_port:
            page_port = settings.page_port
        if page_port is not None:
            self._live = LiveRuns(lambda run_id: self._archive.find(run_id) is not None)
            self._page = PageServer(
                settings.page_host, page_port, self._live, self._archive, self._pool, analyses=self.analyses
            )

    @property
    def page_port(self) -> int | None:
        """The port of the page; None if it serves none."""
        return None if self._page is None else self._page.port

    def close(self) -> None:
        """Stop the page, and the pool unless it was passed by the caller."""
        if self._page is not None:
            self._page.close()
        if self._closes_pool:
            self._pool.close()
        self._drawing.shutdown(wait=False)

    def poll(self) -> None:
        """Publish the first figure, and write a folder that could not be written before.

        The first call requests the status of runs.
        """
        if self._first_files is not None and self._first_files.done():
            self._publish_first_files(self._first_files)
        if self._output is None:
            for run in self._live.all() if self._live is not None else ():
                if run.is_drawing and self._archive.find(run.run_id) is not None and self._live is not None:
                    self._live.finish(run.run_id)
            return
        if not self._has_requested_status:
            # The analysis publishes the results again that the previous process could not write.
            of_runs = [StatusRequest(run_id) for run_id in self._archive.unwritten()]
            self.publish([*of_runs, StatusRequest(None)] if self._page is not None else of_runs)
            self._has_requested_status = True
        self._write_next(self._output)

    def handle(self, message: Message) -> Sequence[Message]:
        """Update the page; for a final result, draw it, write its folder and return its files.

        A folder that cannot be written is tried again in ``poll``. Raises Unavailable while MAX_UNWRITTEN runs wait.
        """
        shown = RunStarted | Result | Progress | FetchProgress | RunFailed | ServiceStatus | QueueStatus
        if not isinstance(message, shown):
            raise MessageError(f"the visualisation does not handle {message.kind} messages")
        if self._live is not None:
            self._live.update(message)
        if isinstance(message, RunStarted) and message.settings.plots:
            self._pool.start()  # the processes are ready when the run ends
        if not isinstance(message, Result):
            return []
        if not message.final:
            if message.result.get("workspace") is not None:  # all chunks are added up, and the fit is under way
                self._draw_before_fit(message.result)
            return []
        if self._output is not None and len(self._unwritten) >= MAX_UNWRITTEN:
            self._write_next(self._output)  # ``poll`` is not called while a message is tried again
            if len(self._unwritten) >= MAX_UNWRITTEN:
                raise Unavailable(f"the folders of {MAX_UNWRITTEN} runs cannot be written to {self._output}")
        result = with_visualisation(message.result, self.software)
        files = self._existing_files(message.run_id, result)
        if files is None:
            self.analyses.of_result(message.result)  # loads an own analysis, or raises SettingsError
            files = self._draw(message.run_id, result, message.timeline)
            if self._live is not None and TIMELINE in files and (samples := self._live.samples(message.run_id)):
                files[TIMELINE] = with_usage(files[TIMELINE], samples)
        folder = ResultFiles(message.run_id, files)
        if self._output is not None:
            self._write(message.run_id, folder.result, files, self._output)
        return [folder]

    def _draw_before_fit(self, so_far: Mapping[str, Any]) -> None:
        """Have the histograms of a run drawn while it is fitted, as those of a complete run: no fit is in them."""
        self.analyses.of_result(so_far)  # loads an own analysis, or raises SettingsError
        result = with_visualisation({**so_far, "complete": True, "fit_problem": WITHOUT_FIT}, self.software)
        self._begun_before_fit({})  # those of another run are not waited for
        drawings = self._pool.draw_ahead(result, figures_of(result))
        self._drawn_before_fit = _without_fit(result), drawings
        if drawings:
            self._begin_first_files(result, {}, drawings)

    def _begun_before_fit(self, result: Mapping[str, Any]) -> dict[str, Future[dict[str, bytes]]]:
        """Return the histograms that are drawn already or being drawn; none if the result was changed since then.

        The others are cancelled, but not the first figure, for which its files wait.
        """
        (before, begun), self._drawn_before_fit = self._drawn_before_fit, ({}, {})
        first = next(iter(begun), None)
        kept = {figure: drawing for figure, drawing in begun.items() if figure == first or not drawing.cancel()}
        return kept if before == _without_fit(result) else {}

    def _begin_first_files(self, result: Mapping[str, Any], others: Mapping[str, bytes], drawings: Drawings) -> None:
        """Wait for the first figure in another thread, and wake the loop then."""
        first = dict([next(iter(drawings.items()))])
        self._first_files = self._drawing.submit(_first_files, result, others, first)
        self._first_files.add_done_callback(lambda _: self.wake())

    def _publish_first_files(self, files: Future[FirstFiles]) -> None:
        self._first_files = None
        with suppress(MessageError, ValueError):  # the final result is refused for the same reason
            self.publish([files.result()])

    def _draw(self, run_id: str, result: Mapping[str, Any], timeline: bytes) -> dict[str, bytes]:
        """Return the files of a result; those with the first figure are published before, unless that was done."""
        drawings = self._begun_before_fit(result)
        are_begun = bool(drawings)
        drawings |= self._pool.draw(result, [figure for figure in figures_of(result) if figure not in drawings])
        others = self.outcome_of(self._drawing.submit(files_without_figures, result, timeline))
        if not are_begun and len(drawings) > 1:
            self._begin_first_files(result, others, drawings)
        if self._first_files is not None:
            with suppress(MessageError, ValueError):
                self.outcome_of(self._first_files)
            self._publish_first_files(self._first_files)
        files = self.outcome_of(self._drawing.submit(result_files, result, others, drawings))
        return cast("dict[str, bytes]", files)

    def _existing_files(self, run_id: str, result: Mapping[str, Any]) -> dict[str, bytes] | None:
        """Return the files of the run that this result does not replace: its own, or those of a better one."""
        if self._output is None:
            return None
        drawn, files = self._unwritten.get(run_id, (None, None))
        if drawn is not None and not _replaces(result, drawn):
            return files
        try:
            if _replaces(result, json.loads(self._archive.read(run_id, RESULT) or b"{}")):
                return None
        except (ValueError, TypeError, AttributeError):  # what is stored is no result
            return None
        names = [file.name for file in self._archive.files(run_id)]
        contents = [self._archive.read(run_id, name) for name in names]
        return {name: content for name, content in zip(names, contents, strict=True) if content is not None}

    def _write_next(self, output: Path) -> None:
        """Write a folder that could not be written before, if it is time for another attempt."""
        if self._unwritten and time.monotonic() >= self._next_write:
            run_id, (result, files) = next(iter(self._unwritten.items()))
            self._write(run_id, result, files, output)

    def _write(self, run_id: str, result: Mapping[str, Any], files: dict[str, bytes], output: Path) -> None:
        """Write a run's folder; where that fails, keep the files for a later attempt."""
        try:
            write_folder(files, output, run_id, written_ns=self._archive.next_written_ns())
        except OSError as error:
            problem = f"{output / run_id} cannot be written: {error}"
            if run_id not in self._unwritten:
                log.warning("%s; it is tried again until it succeeds", problem)
            self._unwritten[run_id] = (result, files)
            self._unwritten.move_to_end(run_id)
            self._next_write = time.monotonic() + RETRY_S
            self._archive.mark_unwritten(run_id)
            if self._live is not None:
                self._live.report_problem(run_id, problem)
            return
        if self._unwritten.pop(run_id, None) is not None:
            log.info("%s is written", output / run_id)
        self._archive.unmark_unwritten(run_id)
        under_way = set()
        if self._live is not None:
            self._live.finish(run_id)
            under_way = {run.run_id for run in self._live.all()}
        if self._results_keep:
            deleted = self._archive.prune(self._results_keep, {run_id, *under_way})
            if deleted:
                log.info("RESULTS_KEEP=%d: deleted %s", self._results_keep, ", ".join(deleted))


def _first_files(result: Mapping[str, Any], others: Mapping[str, bytes], first: Drawings) -> FirstFiles:
    return FirstFiles(result["run_id"], result_files(result, others, first))


def _replaces(result: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Whether a final result replaces the stored one of its run.

    A complete one is kept, unless it lacks figures: then they are drawn again. An incomplete one is replaced by a
    complete one, or by another one with as many events or more: a run loses no event that it has analysed.
    Times would not say which is newer, because the clock of the analysis may have been set back.
    """
    if result == stored or (stored.get("complete") and not stored.get("problems")):
        return False
    return bool(result.get("complete")) or (not stored.get("complete") and _events(result) >= _events(stored))


def _without_fit(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parts of a result that are the same before its fit, and all that its first figure shows."""
    return {name: part for name, part in result.items() if name not in _CHANGED_LATER}


def _events(result: Mapping[str, Any]) -> int:
    """The number of events that a result has read; 0 if it does not say."""
    samples = result.get("samples")
    return sum(sample.get("events_read", 0) for sample in samples.values()) if isinstance(samples, dict) else 0
