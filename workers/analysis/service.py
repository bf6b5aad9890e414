"""The analysis service: adds up chunks until a run is whole, then has it fitted.

A run is finished when its result, fit included, is published and kept. The fit
takes no part in the loop: what makes a run whole is acknowledged when it is in
the database, and whoever starts the service anew finds there which runs are
whole and not finished, and has them fitted again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import awkward as ak
import numpy as np

from common import topology
from common.errors import MessageError
from common.messages import (
    ChunkFailed,
    DeadLetterNotice,
    Message,
    Progress,
    RequeueNotice,
    Result,
    RunFailed,
    RunPlan,
    SamplePlan,
    Selected,
    StatusRequest,
)
from common.releases import Release, Releases
from common.service import Service
from common.settings import Settings
from common.topology import Queue
from common.transport import Delivery
from physics import RELEASES
from workers.analysis.fit_pool import FitPool
from workers.analysis.histograms import fill
from workers.analysis.result import result_of, with_fit
from workers.analysis.store import Partial, Run, Store

log = logging.getLogger(__name__)

#: Partial results of a run come at most this often, and take at most a tenth of the service's time.
PARTIAL_EVERY_S = 0.5
_PARTIAL_SHARE = 10
#: How long the chunks of a run are kept whose plan has not come: plans have a queue of their own, and may be later.
ORPHANED_AFTER_S = 3600.0
ORPHAN_CHECK_EVERY_S = 60.0
#: For so many runs it is remembered that their result is published.
_MAX_PUBLISHED = 1_000


class Analysis(Service):
    """Keeps every chunk's partial histograms, and publishes a run's result when the last one is there."""

    name: ClassVar[str] = "analysis"
    releases: ClassVar[Releases] = RELEASES
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS, topology.SELECTED, topology.DEAD_NOTICES)

    def __init__(self, settings: Settings, store: Store | None = None, fits: FitPool | None = None) -> None:
        self._store = store or Store(settings.database)
        self._fits = fits or FitPool()
        self._next_partial: dict[str, float] = {}
        self._orphaned_since: dict[str, float] = {}
        self._next_look = 0.0
        #: Runs whose kept result this process knows to be published, the latest last.
        self._published: dict[str, None] = {}
        self._resumed = False

    def close(self) -> None:
        """End what is being fitted, and close the database."""
        self._fits.close()
        self._store.close()

    def decode(self, delivery: Delivery) -> Message:
        """Read a delivery; of a dead letter, the headers alone."""
        headers = delivery.headers
        is_notice = delivery.queue == topology.DEAD_NOTICES.name
        if not is_notice or (
            delivery.kind == RequeueNotice.kind and not {"problem", "x-first-death-queue"} & headers.keys()
        ):
            return super().decode(delivery)
        queue = str(headers.get("queue") or headers.get("x-first-death-queue") or "a queue")
        reason = headers.get("problem") or _BROKERS_REASONS.get(str(headers.get("x-first-death-reason")))
        if queue == topology.VISUALISATION.name and delivery.kind != Result.kind:
            headers = {}  # news that nobody has read: nothing is missing from the run
        return DeadLetterNotice.from_headers(queue, headers, problem=str(reason or "the broker dead-lettered it"))

    def handle(self, message: Message) -> Sequence[Message]:
        """Note what a message says of its run, and publish how far the run is."""
        match message:
            case RunPlan():
                self._store.begin(message)
                return self._outcome(message.run_id) or self._current_state(message.run_id)
            case StatusRequest():
                return self._outcome(message.run_id) or self._progress_of(message.run_id)
            case SamplePlan():
                self._store.plan(message)
                return self._current_state(message.run_id)
            case ChunkFailed():
                self._store.fail(message.chunk, message.problem)
                return self._current_state(message.chunk.run_id, changed=True)
            case Selected():
                return self._add(message)
            case DeadLetterNotice():
                return self._on_dead_letter(message)
            case RequeueNotice():
                return self._on_requeued(message)
        raise MessageError(f"the analysis has no use for a {message.kind} message")

    def poll(self) -> None:
        """Publish and keep the results whose fit is done, and give up chunks of runs that nobody plans.

        At the start, find what is whole but not finished.
        """
        if not self._resumed:
            self._fits.start()
            for run_id in self._store.unfinished():
                if not self._store.problems(run_id):
                    self.publish(self._current_state(run_id, changed=True))
            self._resumed = True
        for run_id, fitted in self._fits.outcomes().items():
            run = self._store.run(run_id)
            if run is not None:
                result = with_fit(fitted.result, fitted.fit, fitted.problem, run, time.time())
                # In this order: a crash in between has it fitted and published once more, not never.
                self.publish([Result(run_id, final=True, result=result)])
                self._store.finish(run_id, result)
                self._published.pop(run_id, None)
            self._fits.forget(run_id)
        if time.time() >= self._next_look:
            self._next_look = time.time() + ORPHAN_CHECK_EVERY_S
            self._drop_orphaned()

    def _drop_orphaned(self) -> None:
        now = time.time()
        unplanned = self._store.orphaned()
        self._orphaned_since = {run_id: self._orphaned_since.get(run_id, now) for run_id in unplanned}
        for run_id, since in self._orphaned_since.items():
            if now - since >= ORPHANED_AFTER_S:
                problem = f"chunks came, but within {ORPHANED_AFTER_S / 3600:g} hours no plan of the run"
                names = self._store.drop_orphaned(run_id, problem)
                log.warning("run %s: %s; given up: %s", run_id, problem, ", ".join(names))
                self.publish([self._failed(run_id, problem)])

    def _failed(self, run_id: str, problem: str) -> RunFailed:
        """Note that a run came to nothing, for who asks later."""
        self._store.note_failure(run_id, problem)
        return RunFailed(run_id, problem)

    def _outcome(self, run_id: str) -> Sequence[Message]:
        """How a run has ended, told again to who asks again; nothing where it is under way."""
        known, failure = self._store.result(run_id), self._store.failure(run_id)
        if known is not None:
            return [Result(run_id, final=True, result=known)]
        return [] if failure is None else [RunFailed(run_id, failure)]

    def _progress_of(self, run_id: str) -> Sequence[Message]:
        """How far a run is, told again."""
        planned = [Progress("plan", everything) for everything in self._store.planned(run_id)]
        return [*planned, *(Progress("analysis", chunk) for chunk in self._store.done(run_id))]

    def _add(self, message: Selected) -> Sequence[Message]:
        release = RELEASES[message.release]
        _check_cutflow(message, release)
        sample = release.sample(message.chunk.sample)
        weights = np.empty(0, np.float32) if sample.is_data else ak.to_numpy(message.events.weight)
        partial = Partial(message.cutflow, fill(message.events, release, sample.category), weights)
        changed = self._store.add(message.chunk, partial)
        return [Progress("analysis", message.chunk), *self._current_state(message.chunk.run_id, changed=changed)]

    def _on_dead_letter(self, letter: DeadLetterNotice) -> Sequence[Message]:
        """A message was dead-lettered: what it carried is missing from its run."""
        problem = f"a message in {letter.queue} could not be handled: {letter.problem}"
        run_id = letter.run_id
        if run_id is None:
            return []
        run = self._store.run(run_id)
        if letter.queue == topology.VISUALISATION.name:  # one of its results cannot be drawn
            return [] if run is not None and self._store.result(run_id) is None else [RunFailed(run_id, problem)]
        if letter.chunk is not None:
            self._store.fail(letter.chunk, problem)
        elif letter.sample is not None:
            self._store.mark_lost(run_id, letter.sample, problem)
        elif letter.queue == topology.RUNS.name and run is not None:
            for sample in run.settings.samples:
                self._store.mark_lost(run_id, sample, problem)
        if run is None:
            return [self._failed(run_id, problem)]
        return self._current_state(run_id, changed=True)

    def _on_requeued(self, letter: RequeueNotice) -> Sequence[Message]:
        """A dead letter goes back to its queue: its run, ended or not, waits for it again."""
        if letter.run_id is None or letter.queue == topology.VISUALISATION.name:
            return []
        self._store.reopen(letter.run_id, letter.sample, letter.chunk)
        return self._current_state(letter.run_id, changed=True)

    def _current_state(self, run_id: str, *, changed: bool = False) -> Sequence[Message]:
        """The run's final result if it is finished, else a partial one now and then, else nothing."""
        known = self._store.result(run_id)
        if known is not None and (known["complete"] or not changed):
            self._publish_once(Result(run_id, final=True, result=known))
            return []
        run = self._store.run(run_id)
        if run is None or run_id in self._fits:
            return []
        now = time.time()
        if self._store.is_settled(run_id):
            self._next_partial.pop(run_id, None)
            return [self._conclude(run, result_of(run, self._store, now, final=True))]
        if now < self._next_partial.setdefault(run_id, now + PARTIAL_EVERY_S):
            return []
        result = result_of(run, self._store, now, final=False)
        cost_s = time.time() - now
        self._next_partial[run_id] = now + max(PARTIAL_EVERY_S, _PARTIAL_SHARE * cost_s)
        return [Result(run_id, final=False, result=result)]

    def _publish_once(self, final: Result) -> None:
        """Publish a result that is kept, and see it confirmed; what comes again of its run brings it no second time.

        It may have been kept, and the service killed, before it was published.
        """
        if final.run_id in self._published:
            return
        self.publish([final])
        self._published[final.run_id] = None
        if len(self._published) > _MAX_PUBLISHED:
            del self._published[next(iter(self._published))]

    def _conclude(self, run: Run, result: dict[str, Any]) -> Result:
        """A whole run's final result; where there is something to fit, all but the fit, which is then under way."""
        if result["workspace"] is None:
            self._store.finish(run.run_id, result)
            self._published.pop(run.run_id, None)
            return Result(run.run_id, final=True, result=result)
        self._fits.submit(run.run_id, result, then=self.wake)
        so_far = {**result, "complete": False, "fit_problem": "the fit is under way"}
        return Result(run.run_id, final=False, result=so_far)


def _check_cutflow(message: Selected, release: Release) -> None:
    """Raise MessageError unless a chunk's cutflow has the release's steps, and ends with its events."""
    cutflow = message.cutflow
    if cutflow.keys() != set(release.steps) or cutflow[release.steps[-1]] != len(message.events):
        raise MessageError(f"selected: {message.chunk} has {len(message.events)} events and the cutflow {cutflow}")


_BROKERS_REASONS = {
    "delivery_limit": "it stopped its worker again and again",
    "expired": "it was too old",
    "maxlen": "its queue was full",
}
