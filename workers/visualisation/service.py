"""The visualisation service: draws finished runs, writes and publishes their result files, and serves the web page."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from common.analyses import Analyses
from common.errors import MessageError, Unavailable
from common.messages import FetchProgress, Message, Progress, Result, ResultFiles, RunFailed, RunStarted, StatusRequest
from common.result_folder import write_folder
from common.service import Service
from common.settings import Settings
from physics import ANALYSES
from workers.visualisation.archive import RESULT, Archive
from workers.visualisation.page import PageServer
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.plots.pool import DrawingPool
from workers.visualisation.result_files import result_files

log = logging.getLogger(__name__)


class Visualisation(Service):
    """Makes the result files of every final result.

    Without ``keep``, it publishes the files but does not write them, and serves no page.
    """

    name: ClassVar[str] = "visualisation"
    is_single: ClassVar[bool] = True
    analyses: ClassVar[Analyses] = ANALYSES

    def __init__(self, settings: Settings, *, keep: bool = True, pool: DrawingPool | None = None) -> None:
        self._output: Path | None = settings.output if keep else None
        self._archive = Archive(settings.output)
        self._results_keep = settings.results_keep
        self._pool, self._closes_pool = pool or DrawingPool(), pool is None
        self._live: LiveRuns | None = None
        self._page: PageServer | None = None
        self._needs_status = False
        if keep and settings.page_port:
            self._live = LiveRuns(lambda run_id: self._archive.find(run_id) is not None)
            self._page = PageServer(settings.page_port, self._live, self._archive, self._pool)
            self._needs_status = True

    def close(self) -> None:
        """Stop the page, and the pool unless it was passed by the caller."""
        if self._page is not None:
            self._page.close()
        if self._closes_pool:
            self._pool.close()

    def poll(self) -> None:
        """Request the status of the runs under way from the analysis, once after the start."""
        if self._needs_status:
            self.publish([StatusRequest(None)])
            self._needs_status = False

    def handle(self, message: Message) -> Sequence[Message]:
        """Update the page; for a final result, draw it, write its folder and return its files."""
        if not isinstance(message, RunStarted | Result | Progress | FetchProgress | RunFailed):
            raise MessageError(f"the visualisation does not handle {message.kind} messages")
        if self._live is not None:
            self._live.update(message)
        if isinstance(message, RunStarted) and message.settings.plots:
            self._pool.start()  # the processes are ready when the run ends
        if not (isinstance(message, Result) and message.final):
            return []
        files = self._existing_files(message) or result_files(message.result, self._pool)
        if self._output is not None:
            self._write(files, self._output, message.run_id)
        return [ResultFiles(message.run_id, files)]

    def _existing_files(self, result: Result) -> dict[str, bytes] | None:
        """Return the files of the run's folder if it holds this result, so that it is not drawn twice."""
        if self._output is None:
            return None
        try:
            if json.loads(self._archive.read(result.run_id, RESULT) or b"null") != result.result:
                return None
        except ValueError:
            return None
        names = [file.name for file in self._archive.files(result.run_id)]
        contents = [self._archive.read(result.run_id, name) for name in names]
        return {name: content for name, content in zip(names, contents, strict=True) if content is not None}

    def _write(self, files: Mapping[str, bytes], output: Path, run_id: str) -> None:
        try:
            write_folder(files, output, run_id)
        except OSError as error:
            problem = f"{output / run_id} cannot be written: {error}"
            if self._live is not None:
                self._live.report_problem(run_id, problem)
            raise Unavailable(problem) from error
        under_way = set()
        if self._live is not None:
            self._live.finish(run_id)
            under_way = {run.run_id for run in self._live.all()}
        if self._results_keep:
            deleted = self._archive.prune(self._results_keep, {run_id, *under_way})
            if deleted:
                log.info("RESULTS_KEEP=%d: deleted %s", self._results_keep, ", ".join(deleted))
