"""The data-loader: splits runs into chunks, reads the chunks and applies the pT cuts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from common.cancellations import CancelledRuns
from common.delivery import Delivery
from common.errors import AnalysisError, DataError, MessageError
from common.messages import (
    Chunk,
    ChunkFailed,
    ChunkTask,
    Events,
    FetchProgress,
    FileTask,
    Message,
    Progress,
    RunPlan,
    RunRequest,
    RunStarted,
    SamplePlan,
    Span,
)
from common.service import Service
from common.settings import Settings
from physics import ANALYSES
from workers.data_loader import reading
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Fetcher
from workers.data_loader.sources import locate

FETCH_PROGRESS_EVERY_S = 0.5


class DataLoader(Service):
    """Answers a run request with file tasks, a file task with chunk tasks, and a chunk task with events."""

    name: ClassVar[str] = "data-loader"

    def __init__(self, settings: Settings, *, decompression_threads: int = 2) -> None:
        """Decompress baskets in so many threads, which use other cores; 0 for a process that has one core."""
        self.analyses = ANALYSES.in_folder(settings.analyses, self.name)
        self.analyses.resolve(settings.run)  # raises for settings that no run could have
        self._defaults = settings.run
        self._fetcher = Fetcher(settings.cache)
        self._cancelled = CancelledRuns()
        self._decompression = ThreadPoolExecutor(decompression_threads) if decompression_threads else None

    def close(self) -> None:
        """End the threads that decompress."""
        if self._decompression is not None:
            self._decompression.shutdown(wait=False)

    def decode(self, delivery: Delivery) -> Message:
        """Read a delivery; a setting that a run request does not give is taken from this service's settings."""
        if delivery.kind == RunRequest.kind:
            return RunRequest.decode(delivery.body, self.analyses, self._defaults)
        return super().decode(delivery)

    def handle(self, message: Message) -> Sequence[Message]:
        """Handle a run request, a file task or a chunk task; those of a cancelled run are dropped."""
        if self._cancelled.drops(message):
            return []
        match message:
            case RunRequest():
                return self._begin(message)
            case FileTask():
                return self._plan(message)
            case ChunkTask():
                return self.read(message)
        raise MessageError(f"a data-loader has no use for a {message.kind} message")

    def _begin(self, request: RunRequest) -> Sequence[Message]:
        run_id, settings = request.run_id, request.settings
        tasks = [FileTask(run_id, sample, settings) for sample in settings.samples]
        shown = settings.without_credentials()
        return [RunStarted(run_id, shown), RunPlan(run_id, request.submitted, shown), *tasks]

    def _plan(self, task: FileTask) -> Sequence[Message]:
        analysis = self.analyses.of(task.settings)
        sample = analysis.sample(task.sample)
        try:
            control = FetchControl(self._fetch_progress(task), self.heartbeat, self.stop)
            file = locate(sample, analysis, task.settings, self._fetcher, control)
            identity = file.identity(self._fetcher.cache)
            bounds = reading.chunk_bounds(file.path, analysis, sample, task.settings)
            file.check(identity)
        except DataError as error:
            return [SamplePlan(task.run_id, task.sample, problem=str(error), digest=task.digest)]
        plan = SamplePlan(task.run_id, task.sample, bounds[-1], bounds, file=identity, digest=task.digest)
        whole_file = Chunk(task.run_id, task.sample, 0, bounds[-1])
        tasks = [ChunkTask(chunk, task.settings, identity) for chunk in plan.chunks]
        # Read the first chunk now, so that the other services have work while the next files are planned.
        planned = self.spans("planned")
        first_chunk = [message for first in tasks[:1] for message in self.read(first, planned)]
        return [plan, Progress("plan", whole_file), *tasks[1:], *first_chunk]

    def _fetch_progress(self, task: FileTask) -> Callable[[int, int | None], None]:
        """Return a callback that publishes the progress of a download, at most twice a second."""
        next_at = time.monotonic()

        def publish_progress(done_bytes: int, total_bytes: int | None) -> None:
            nonlocal next_at
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + FETCH_PROGRESS_EVERY_S
                self.publish_without_confirm(FetchProgress(task.run_id, task.sample, done_bytes, total_bytes))

        return publish_progress

    def read(self, task: ChunkTask, before: Sequence[Span] = ()) -> Sequence[Message]:
        """Read a chunk and apply the loader's steps; returns its events, or why it failed.

        It fails if the file is not the one that the run was planned with, or a function of the analysis fails.
        ``before`` is what happened to the chunk before.
        """
        chunk = task.chunk
        analysis = self.analyses.of(task.settings)
        sample = analysis.sample(chunk.sample)
        try:
            control = FetchControl(heartbeat=self.heartbeat, stop=self.stop)
            file = locate(
                sample, analysis, task.settings, self._fetcher, control, planned=task.file, run_id=chunk.run_id
            )
            arrays = reading.read(
                file.path, analysis, sample, chunk.start, chunk.stop, decompression=self._decompression
            )
            if task.file:
                file.check(task.file)  # again: it may have been replaced since
            events, cutflow = reading.select(arrays, analysis, sample, task.settings)
        except (DataError, AnalysisError) as error:
            return [ChunkFailed(chunk, str(error), task.digest, self.spans("read", before))]
        software = {self.name: self.software}
        return [
            Events(chunk, task.settings, cutflow, events, self.spans("read", before), software),
            Progress("data-loader", chunk),
        ]
