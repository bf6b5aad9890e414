"""The analysis service: adds up the chunks of runs, and has complete runs fitted.

A run is finished when its result, with the fit, is published and stored. A fit
does not hold up the service: the message that completes a run is acknowledged
once it is in the database. A service that is started again finds the runs in
the database that are complete but not finished, and has them fitted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import awkward as ak
import numpy as np

from common import topology
from common.analyses import Analysis
from common.cancellations import CANCELLED
from common.delivery import Delivery
from common.errors import BrokerError, DamagedError, DatabaseError, MessageError, SettingsError, Unavailable
from common.messages import (
    CancelRequest,
    ChunkFailed,
    DeadLetterNotice,
    Message,
    Progress,
    RequeueNotice,
    Result,
    RunCancelled,
    RunFailed,
    RunList,
    RunListRequest,
    RunPlan,
    RunStarted,
    SamplePlan,
    Selected,
    StatusRequest,
    run_of,
)
from common.service import Service
from common.settings import Settings
from physics import ANALYSES
from workers.analysis.histograms import fill
from workers.analysis.result import result_of, with_fit
from workers.analysis.run_list import list_runs
from workers.analysis.statistics.fit_pool import FitOutcome, FitPool
from workers.analysis.store import PartialSums, Run, Store
from workers.analysis.timeline import Timeline

log = logging.getLogger(__name__)

#: Partial results of a run are at least this far apart, and take at most a tenth of the service's time.
PARTIAL_EVERY_S = 0.5
_PARTIAL_SHARE = 10
#: How long what arrived of a run without a plan is kept. Plans have a queue of their own and may arrive later.
ORPHANED_AFTER_S = 3600.0
ORPHAN_CHECK_EVERY_S = 60.0
#: How often the service checks that its database file is still there; each transaction checks it, too.
FILE_CHECK_EVERY_S = 10.0
#: How many ended runs are kept where RESULTS_KEEP is 0. One needs about 60 kB.
KEEP = 1_000
#: How many of the chunks that are dropped are named in the log.
_NAMED = 20
#: The number of runs for which the service remembers that it published their result.
_MAX_PUBLISHED = 1_000


class AnalysisService(Service):
    """Stores the partial histograms of each chunk, and publishes a run's result after the last chunk."""

    name: ClassVar[str] = "analysis"
    is_single: ClassVar[bool] = True

    def __init__(self, settings: Settings, store: Store | None = None, fits: FitPool | None = None) -> None:
        self.analyses = ANALYSES.in_folder(settings.analyses, self.name)
        self._store = store or Store(settings.database)
        self._fits = fits or FitPool()
        self._keep = settings.results_keep or KEEP
        self._has_ended = False  # whether a run has ended since the last deletion
        self._next_partial: dict[str, float] = {}
        self._orphaned_since: dict[str, float] = {}
        self._next_orphan_check = self._next_file_check = 0.0
        #: When a run began by the monotonic clock, for the runs whose plan this process has received.
        self._begun: dict[str, float] = {}
        #: Runs whose stored result this process has published, the latest last.
        self._published: dict[str, None] = {}
        self._resumed = False

    def close(self) -> None:
        """End the fit under way, and close the database."""
        self._fits.close()
        self._store.close()

    def decode(self, delivery: Delivery) -> Message:
        """Decode a delivery; of a dead letter, only the headers."""
        headers = delivery.headers
        is_notice = delivery.queue == topology.DEAD_NOTICES.name
        if not is_notice or (
            delivery.kind == RequeueNotice.kind and not {"problem", "x-first-death-queue"} & headers.keys()
        ):
            return super().decode(delivery)
        queue = str(headers.get("queue") or headers.get("x-first-death-queue") or "a queue")
        reason = headers.get("problem") or _BROKERS_REASONS.get(str(headers.get("x-first-death-reason")))
        if queue == topology.VISUALISATION.name and delivery.kind != Result.kind:
            headers = {}  # a progress message: the run misses nothing without it
        return DeadLetterNotice.from_headers(queue, headers, problem=str(reason or "the broker dead-lettered it"))

    def handle(self, message: Message) -> Sequence[Message]:
        """Store what a message says about its run, and return the run's state where that is to be published.

        A run that is damaged in the database is given up.
        """
        if isinstance(message, RunListRequest):
            return [RunList(message.request_id, list_runs(self._store, self._now, self._fits.__contains__))]
        try:
            return self._handle(message)
        except DamagedError as error:
            run_id = run_of(message)
            if run_id is None:
                raise
            return self._give_up(run_id, error)

    def _handle(self, message: Message) -> Sequence[Message]:
        match message:
            case RunPlan(run_id=run_id) | CancelRequest(run_id=run_id) | StatusRequest(run_id=str(run_id)) if (
                self._has_other_settings(run_id, message.digest)
            ):
                log.warning("run %s: a request is refused: %s", run_id, _OTHER_SETTINGS)
                return [RunFailed(run_id, _OTHER_SETTINGS, message.digest)]
            case CancelRequest():
                return self._cancel(message.run_id)
            case RunPlan(run_id=run_id) | StatusRequest(run_id=str(run_id)) if self._store.is_deleted(run_id):
                return self._deleted(run_id, message.digest if isinstance(message, RunPlan) else None)
            case RunPlan():
                self._begun.setdefault(message.run_id, time.monotonic())
                self._store.begin(message, time.time())
                return self._outcome(message.run_id) or self._state(message.run_id)
            case StatusRequest(run_id=run_id):
                return self._status_of_all() if run_id is None else self._outcome(run_id) or self._progress(run_id)
            case SamplePlan() | ChunkFailed() | Selected() if self._has_other_settings(run_of(message), message.digest):
                raise MessageError(f"{message.kind} of run {run_of(message)}: {_OTHER_SETTINGS}")
            case _ if (of_run := run_of(message)) is not None and self._store.is_deleted(of_run):
                # To the replicas that have started since the run was cancelled.
                return [RunCancelled(of_run)] if self._store.is_cancelled(of_run) else []
            case SamplePlan():
                self._store.plan(message)
                return self._state(message.run_id)
            case ChunkFailed():
                spans = self.spans("added", message.spans)
                failed = self._store.fail(message.chunk, message.problem, spans)
                return self._state(message.chunk.run_id, changed=failed)
            case Selected():
                return self._add(message)
            case DeadLetterNotice():
                return self._on_dead_letter(message)
            case RequeueNotice():
                return self._on_requeued(message)
        raise MessageError(f"the analysis cannot handle a {message.kind} message")

    def outcome_refused(self, message: Message, problem: str) -> Sequence[Message]:
        """Fail the run whose result the broker refuses."""
        run_id = run_of(message)
        return [] if run_id is None else [self._unpublishable(run_id, problem)]

    def poll(self) -> None:
        """Publish and store results whose fit is done, fail runs without a plan, and delete the oldest ended runs.

        The first call also resumes the runs that are complete but not finished.
        """
        if not self._resumed:
            self._fits.start()
            for run_id in self._store.unfinished():
                self._publish(self._resume(run_id))
            self._resumed = True
        for run_id, outcome in self._fits.outcomes().items():
            try:
                self._end(run_id, outcome)
            except Exception as error:
                self.publish(self._give_up(run_id, error))
            self._fits.forget(run_id)
        now = time.monotonic()
        if now >= self._next_file_check:
            self._next_file_check = now + FILE_CHECK_EVERY_S
            self._check_file()
        if now >= self._next_orphan_check:
            self._next_orphan_check = now + ORPHAN_CHECK_EVERY_S
            self._drop_orphaned()
        if self._has_ended:
            self._has_ended = False
            self._delete_ended()

    def _delete_ended(self) -> None:
        try:
            self._store.delete_ended(self._keep)
        except DamagedError as error:
            log.error("ended runs cannot be deleted: %s", error)

    def _resume(self, run_id: str) -> Sequence[Message]:
        try:
            return [] if self._store.problems(run_id) else self._state(run_id, changed=True)
        except DamagedError as error:
            return self._give_up(run_id, error)
        except SettingsError as error:  # its analysis is not here any more; after a restart with it, the run ends
            log.error("run %s: %s", run_id, error)
            return [RunFailed(run_id, str(error))]

    def _end(self, run_id: str, outcome: FitOutcome) -> None:
        """Publish and store a run's result with its fit, unless the run has a complete result."""
        run, stored = self._store.run(run_id), self._store.result(run_id)
        if run is None or self._store.is_cancelled(run_id) or (stored is not None and stored["complete"]):
            return
        result = with_fit(outcome.result, outcome.fit, outcome.problem, run, self._now(run))
        timeline = self._timeline(run_id)
        # Publish first: after a crash in between, the result is published twice instead of never.
        self._publish([self._final(run_id, result, timeline)])
        self._store.finish(run_id, result, timeline)
        self._forget(run_id)

    def _check_file(self) -> None:
        """Raise DatabaseError if the database file was deleted or replaced; its runs fail."""
        try:
            self._store.check_file()
        except DatabaseError as error:
            self.publish([RunFailed(run_id, str(error)) for run_id in self._store.unfinished()])
            raise

    def _give_up(self, run_id: str, error: Exception) -> Sequence[Message]:
        """Fail a run that is damaged in the database, or whose result cannot be made.

        Raises the error again if it is one of the broker or the database: the run is not its cause.
        """
        if isinstance(error, DamagedError):
            problem, traceback = f"the run is given up, because it is damaged in the database: {error}", None
        elif isinstance(error, BrokerError | DatabaseError | Unavailable):
            raise error
        else:
            problem, traceback = f"its result cannot be made: {type(error).__name__}: {error}", error
        if self._store.failure(run_id) is not None:
            return []
        log.error("run %s: %s", run_id, problem, exc_info=traceback)
        return [self._failed(run_id, problem)]

    def _drop_orphaned(self) -> None:
        """Fail the runs that have had no plan for an hour, and drop their chunks."""
        now = time.monotonic()
        try:
            orphaned = self._store.orphaned()
        except DamagedError as error:
            log.error("runs without a plan cannot be found: %s", error)
            return
        self._orphaned_since = {run_id: self._orphaned_since.get(run_id, now) for run_id in orphaned}
        for run_id, since in self._orphaned_since.items():
            if now - since >= ORPHANED_AFTER_S:
                problem = f"no plan of the run arrived within {ORPHANED_AFTER_S / 3600:g} h of its first message"
                names = self._store.drop_orphaned(run_id, problem)
                log.warning("run %s: %s; chunks dropped: %s", run_id, problem, ", ".join(names[:_NAMED]) or "none")
                self.publish([self._failed(run_id, problem)])

    def _failed(self, run_id: str, problem: str) -> RunFailed:
        """Store why a run failed, for later status requests."""
        self._store.note_failure(run_id, problem)
        self._forget(run_id)
        return RunFailed(run_id, problem)

    def _unpublishable(self, run_id: str, reason: object) -> RunFailed:
        return self._failed(run_id, f"its result cannot be published: {reason}")

    def _forget(self, run_id: str) -> None:
        """Release what this process keeps of a run that has ended."""
        for kept in (self._begun, self._published, self._next_partial):
            kept.pop(run_id, None)
        self._has_ended = True

    def _outcome(self, run_id: str) -> Sequence[Message]:
        """Return how a run ended; nothing if it has not."""
        result, failure = self._store.result(run_id), self._store.failure(run_id)
        if result is not None:
            return [self._final(run_id, result)]
        return [] if failure is None else [RunFailed(run_id, failure)]

    def _cancel(self, run_id: str) -> Sequence[Message]:
        """Delete a run, and have its tasks and events dropped, unless it has ended; returns how it ended."""
        if not self._store.is_deleted(run_id):
            if outcome := self._outcome(run_id):
                return outcome
            log.info("run %s is cancelled", run_id)
            self._store.cancel(run_id, CANCELLED)
            self._forget(run_id)
        return self._deleted(run_id)

    def _deleted(self, run_id: str, digest: str | None = None) -> Sequence[Message]:
        """Return why a run was deleted; ``digest`` is that of the request that is refused, None for every request."""
        if self._store.is_cancelled(run_id):
            return [RunCancelled(run_id), RunFailed(run_id, CANCELLED)]
        return [RunFailed(run_id, _DELETED, digest)]

    def _status_of_all(self) -> Sequence[Message]:
        """Return the failed runs, and the settings and progress of the runs under way."""
        answers: list[Message] = [RunFailed(run_id, problem) for run_id, problem in self._store.failures()]
        for run_id in self._store.unfinished():
            try:
                run = self._store.run(run_id)
                if run is not None and self._store.result(run_id) is None:
                    answers += [RunStarted(run_id, run.settings), *self._progress(run_id)]
            except DamagedError as error:
                answers += self._give_up(run_id, error)
        return answers

    def _progress(self, run_id: str) -> Sequence[Message]:
        """Return the progress messages of a run again."""
        planned = [Progress("plan", whole_file) for whole_file in self._store.planned(run_id)]
        return [*planned, *(Progress("analysis", chunk) for chunk in self._store.done(run_id))]

    def _add(self, message: Selected) -> Sequence[Message]:
        analysis = self.analyses.of(message.settings)
        _check_cutflow(message, analysis)
        sample = analysis.sample(message.chunk.sample)
        weights = np.empty(0, analysis.events["weight"].dtype) if sample.is_data else ak.to_numpy(message.events.weight)
        sums = PartialSums(message.cutflow, fill(message.events, analysis, sample.category), weights)
        spans = self.spans("added", message.spans)
        software = {**message.software, self.name: self.software}
        changed = self._store.add(message.chunk, sums, spans, software)
        progress = Progress("analysis", message.chunk, spans if changed else ())
        return [progress, *self._state(message.chunk.run_id, changed=changed)]

    def _on_dead_letter(self, notice: DeadLetterNotice) -> Sequence[Message]:
        """Mark what a dead-lettered message carried as lost.

        The notice may arrive before the plan of its run. The store then keeps what it says about a chunk or a sample
        until the plan arrives; without a chunk and a sample, it is the run's request or plan that was lost.
        """
        problem = f"a message in {notice.queue} could not be handled: {notice.problem}"
        run_id = notice.run_id
        if run_id is None or self._has_other_settings(run_id, notice.digest):
            return []
        run = self._store.run(run_id)
        if notice.queue == topology.VISUALISATION.name:  # a result that cannot be drawn
            return [] if run is not None and self._store.result(run_id) is None else [RunFailed(run_id, problem)]
        changed = False
        if notice.chunk is not None:
            changed = self._store.fail(notice.chunk, problem)
        elif notice.sample is not None:
            changed = self._store.mark_lost(run_id, notice.sample, problem)
        elif notice.queue == topology.RUNS.name and run is not None:
            for sample in run.settings.samples:
                changed |= self._store.mark_lost(run_id, sample, problem)
        if run is None:
            return [self._failed(run_id, problem)] if notice.sample is None else []
        return self._state(run_id, changed=changed)

    def _on_requeued(self, notice: RequeueNotice) -> Sequence[Message]:
        """Wait again for what a requeued dead letter carries, also if its run has ended."""
        if notice.run_id is None or self._has_other_settings(notice.run_id, notice.digest):
            return []
        if notice.queue == topology.VISUALISATION.name:
            return []
        reopened = self._store.reopen(notice.notice_id, notice.run_id, notice.sample, notice.chunk)
        return self._state(notice.run_id, changed=reopened)

    def _state(self, run_id: str, *, changed: bool = False) -> Sequence[Message]:
        """Return the run's final result if it is finished, or a partial one if the last is old enough.

        A run whose result cannot be made fails, whatever the error. Nothing is returned of a run that has failed.
        """
        result = self._store.result(run_id)
        if result is not None and (result["complete"] or not changed):
            self._publish_once(self._final(run_id, result))
            return []
        run = self._store.run(run_id)
        if run is None or run_id in self._fits or self._store.failure(run_id) is not None:
            return []
        self.analyses.of(run.settings)  # loads the analysis of a run that an earlier process began
        try:
            return [self._finish(run)] if self._store.is_settled(run_id) else self._partial(run)
        except Exception as error:
            return self._give_up(run_id, error)

    def _partial(self, run: Run) -> Sequence[Message]:
        now = time.monotonic()
        if now < self._next_partial.setdefault(run.run_id, now + PARTIAL_EVERY_S):
            return []
        result = result_of(run, self._store, self._now(run), final=False)
        cost_s = time.monotonic() - now
        self._next_partial[run.run_id] = now + max(PARTIAL_EVERY_S, _PARTIAL_SHARE * cost_s)
        return [Result(run.run_id, final=False, result=result)]

    def _has_other_settings(self, run_id: str | None, digest: str | None) -> bool:
        """Whether a message belongs to another request for this run than the first one, with other settings."""
        return run_id is not None and digest is not None and self._store.digest(run_id, digest) != digest

    def _now(self, run: Run) -> float:
        """The time in seconds since 1970: when the run began, and what has passed since by the monotonic clock.

        After a restart of the service it is the time of the system's clock.
        """
        begun = self._begun.get(run.run_id)
        return max(time.time(), run.begun) if begun is None else run.begun + time.monotonic() - begun

    def _timeline(self, run_id: str) -> bytes:
        """The compressed timeline of a run whose chunks are stored; empty if it is too large."""
        timeline = Timeline(run_id, list(self._store.spans(run_id))).compressed()
        if not timeline:
            log.warning("run %s: it has too many chunks for a timeline; CHUNK_ENTRIES makes chunks larger", run_id)
        return timeline

    def _final(self, run_id: str, result: dict[str, Any], timeline: bytes | None = None) -> Result | RunFailed:
        """The message with a final result; if it is too large, the run fails. By default with the stored timeline."""
        timeline = self._store.timeline(run_id) if timeline is None else timeline
        final = Result(run_id, final=True, result=result, timeline=timeline)
        try:
            final.encode()  # raises where it is too large
        except MessageError as error:
            return self._unpublishable(run_id, error)
        return final

    def _publish(self, messages: Sequence[Message]) -> None:
        """Publish messages of a run; where the broker refuses one, the run fails."""
        try:
            self.publish(messages)
        except MessageError as error:
            for run_id in {run_id for message in messages if (run_id := run_of(message)) is not None}:
                self.publish([self._unpublishable(run_id, error)])

    def _publish_once(self, final: Result | RunFailed) -> None:
        """Publish a stored result, unless this process has: an earlier one may have stored it and then crashed."""
        if final.run_id in self._published:
            return
        self._publish([final])
        self._published[final.run_id] = None
        if len(self._published) > _MAX_PUBLISHED:
            del self._published[next(iter(self._published))]

    def _finish(self, run: Run) -> Message:
        """Return the final result of a settled run; if it has a workspace, start the fit and return the result so far.

        The sums are those of the chunks that make the run settled, because a transaction contains both.
        """
        with self._store.transaction():
            stored = self._store.result(run.run_id)
            if stored is not None and stored["complete"]:  # by another process
                return self._final(run.run_id, stored)
            result = result_of(run, self._store, self._now(run), final=True)
            if result["workspace"] is None:
                self._store.finish(run.run_id, result, self._timeline(run.run_id))
        if result["workspace"] is None:
            self._forget(run.run_id)
            return self._final(run.run_id, result)
        self._fits.submit(run.run_id, result, then=self.wake)
        so_far = {**result, "complete": False, "fit_problem": "the fit is under way"}
        return Result(run.run_id, final=False, result=so_far)


def _check_cutflow(message: Selected, analysis: Analysis) -> None:
    """Raise MessageError unless a chunk's cutflow has the release's steps and ends with the number of its events."""
    cutflow = message.cutflow
    if cutflow.keys() != set(analysis.steps) or cutflow[analysis.steps[-1]] != len(message.events):
        raise MessageError(f"selected: {message.chunk} has {len(message.events)} events and the cutflow {cutflow}")


_OTHER_SETTINGS = "the run of this id was requested before with other settings; request it under another id"

_DELETED = "the run has ended, and the analysis has deleted its result (RESULTS_KEEP); request it under another id"

_BROKERS_REASONS = {
    "delivery_limit": "it was delivered too often without an outcome",
    "expired": "it expired",
    "maxlen": "its queue was full",
}
