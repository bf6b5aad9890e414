"""The visualisation service: draws a finished run, writes and publishes its result folder, and shows it on a page."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from common import topology
from common.errors import MessageError, Unavailable
from common.messages import FetchProgress, Message, Progress, Result, ResultFiles, RunFailed, RunStarted
from common.releases import Releases
from common.result_folder import write_folder
from common.service import Service
from common.settings import Settings
from common.topology import Queue
from physics import RELEASES
from workers.visualisation.archive import RESULT, Archive
from workers.visualisation.drawing import ONE_AT_A_TIME
from workers.visualisation.folder import result_files
from workers.visualisation.page.journal import Journal
from workers.visualisation.page.live import LiveRuns
from workers.visualisation.page.server import PageServer

log = logging.getLogger(__name__)

#: In the output folder; its name is none that a run can have.
JOURNAL = ".runs.json"


class Visualisation(Service):
    """Makes a result folder of every final result; ``keep`` False only publishes it, and has no page."""

    name: ClassVar[str] = "visualisation"
    releases: ClassVar[Releases] = RELEASES
    consumes: ClassVar[Sequence[Queue]] = (topology.VISUALISATION,)

    def __init__(self, settings: Settings, *, keep: bool = True) -> None:
        self._output: Path | None = settings.output if keep else None
        self._archive = Archive(settings.output)
        self._results_keep = settings.results_keep
        self._live: LiveRuns | None = None
        self._page: PageServer | None = None
        if keep and settings.page_port:
            self._live = LiveRuns(
                Journal(settings.output / JOURNAL), lambda run_id: self._archive.find(run_id) is not None
            )
            self._page = PageServer(settings.page_port, self._live, self._archive)

    def close(self) -> None:
        """Close the page."""
        if self._page is not None:
            self._page.close()

    def handle(self, message: Message) -> Sequence[Message]:
        """Note the news of a run for the page; draw and write a final result."""
        if not isinstance(message, RunStarted | Result | Progress | FetchProgress | RunFailed):
            raise MessageError(f"the visualisation has no use for a {message.kind} message")
        if self._live is not None:
            self._live.hear(message)
        if not (isinstance(message, Result) and message.final):
            return []
        files = self._drawn_before(message)
        if files is None:
            with ONE_AT_A_TIME:
                files = result_files(message.result)
        if self._output is not None:
            self._write(files, self._output, message.run_id)
        return [ResultFiles(message.run_id, files)]

    def _drawn_before(self, result: Result) -> dict[str, bytes] | None:
        """The files of the result's folder, where it stands: a result that comes again is not drawn again."""
        if self._output is None:
            return None
        known = self._archive.read(result.run_id, RESULT)
        if known is None or json.loads(known) != result.result:
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
                self._live.hold_up(run_id, problem)
            raise Unavailable(problem) from error
        under_way = set()
        if self._live is not None:
            self._live.finish(run_id)
            under_way = {run.run_id for run in self._live.all()}
        if self._results_keep:
            pruned = self._archive.prune(self._results_keep, {run_id, *under_way})
            if pruned:
                log.info("RESULTS_KEEP=%d: pruned %s", self._results_keep, ", ".join(pruned))
