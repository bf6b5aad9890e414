"""Submit a run and follow it to its result folder, over whichever transport."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from common import messages, topology
from common.errors import MessageError
from common.messages import (
    Chunk,
    FetchProgress,
    Message,
    Progress,
    Result,
    ResultFiles,
    RunFailed,
    RunRequest,
    StatusRequest,
)
from common.releases import Releases
from common.settings import RunSettings
from common.transport import Delivery, Session

log = logging.getLogger(__name__)

#: How long nothing may come before the display is told who is missing.
QUIET_S = 5.0

#: The service that consumes each queue.
_CONSUMERS: Mapping[str, str] = {
    topology.RUNS.name: "data-loader",
    topology.CHUNKS.name: "data-loader",
    topology.EVENTS.name: "data-processor",
    topology.SELECTED.name: "analysis",
    topology.PLANS.name: "analysis",
    topology.DEAD_NOTICES.name: "analysis",
    topology.VISUALISATION.name: "visualisation",
}


class Display(Protocol):
    """What is shown of a run under way."""

    def progress(self, stage: messages.Stage, events: int, samples: int) -> None:
        """A stage has done so many events, of so many samples."""
        ...

    def note(self, text: str) -> None:
        """What the run is doing or waiting for, until the next progress."""
        ...

    def result(self, document: Mapping[str, Any]) -> None:
        """The final result is there, its folder is not yet; again, should what comes later change it."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its final result and the files of its folder, or why there are none."""

    result: Mapping[str, Any] | None
    files: Mapping[str, bytes]
    problem: str | None = None


#: What is through with a stage is through with those before it, whether that was heard or not.
_BEFORE: Mapping[messages.Stage, Sequence[messages.Stage]] = {
    "data-processor": ("data-loader",),
    "analysis": ("data-loader", "data-processor"),
}


class StageProgress:
    """Shows the events done by stage; a chunk that is reported twice counts once."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._chunks: dict[messages.Stage, set[Chunk]] = {}
        self._samples: dict[messages.Stage, set[str]] = {}
        self._events: dict[messages.Stage, int] = {}

    def hear(self, progress: Progress) -> None:
        """Note a stage's chunk, and show the stage's events and samples so far."""
        for stage in (*_BEFORE.get(progress.stage, ()), progress.stage):
            self._display.progress(stage, *self._add(stage, progress.chunk))

    def _add(self, stage: messages.Stage, chunk: Chunk) -> tuple[int, int]:
        chunks = self._chunks.setdefault(stage, set())
        samples = self._samples.setdefault(stage, set())
        if chunk not in chunks:
            chunks.add(chunk)
            samples.add(chunk.sample)
            self._events[stage] = self._events.get(stage, 0) + chunk.stop - chunk.start
        return self._events[stage], len(samples)


def new_run_id(release: str) -> str:
    """A run id that sorts by time and does not meet another: ``20260131-235959-demo-1f3a``."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{release}-{secrets.token_hex(2)}"


def submit(session: Session, run_id: str, settings: RunSettings) -> None:
    """Ask for a run; returns when the request is safe with the broker."""
    session.publish([RunRequest(run_id, time.time(), settings)])


def follow(
    session: Session, run_id: str, releases: Releases, display: Display, is_alive: Callable[[], bool]
) -> Outcome:
    """Follow a run until its result folder is there, or until it is known that none will come.

    The display has the final result as soon as it is there, and in any case
    before this returns it. ``is_alive`` says whether there is anything left to
    wait for. After each lost connection it is asked how the run stands: what
    came meanwhile came to nobody.
    """
    stages = StageProgress(display)
    shown: Mapping[str, Any] | None = None
    last = time.monotonic()
    connections = 1
    while is_alive():
        if session.connections() != connections:
            connections = session.connections()
            session.publish_without_confirm(StatusRequest(run_id))
        delivery = session.receive(0.2)
        if delivery is None:
            if time.monotonic() - last > QUIET_S:
                absent = sorted({_CONSUMERS[queue] for queue in session.queues_without_consumer()})
                display.note(f"waiting for {', '.join(absent)}" if absent else "waiting")
                last = time.monotonic()
            continue
        session.publish_and_acknowledge(delivery)
        message = _read(delivery, releases)
        if message is None or _run_of(message) != run_id:
            continue
        last = time.monotonic()
        match message:
            case Progress():
                stages.hear(message)
            case FetchProgress():
                of = "" if message.total_bytes is None else f" of {message.total_bytes / 1e6:.1f}"
                display.note(f"fetching {message.sample}: {message.done_bytes / 1e6:.1f}{of} MB")
            case Result(final=True):
                display.note("drawing the plots")
                if message.result != shown:
                    shown = message.result
                    display.result(shown)
            case ResultFiles():
                display.note("")
                if message.result != shown:
                    display.result(message.result)
                return Outcome(message.result, message.files)
            case RunFailed():
                return Outcome(None, {}, message.problem)
    return Outcome(None, {}, "it was stopped before its result was there")


def _read(delivery: Delivery, releases: Releases) -> Message | None:
    """What was delivered; None, and a warning, where it must not or cannot be read."""
    try:
        if delivery.rejection_reason is not None:
            raise MessageError(delivery.rejection_reason)
        return messages.decode(delivery.kind, delivery.body, releases)
    except MessageError as error:
        log.warning("a %s message is passed over: %s", delivery.kind, error)
        return None


def _run_of(message: Message) -> str | None:
    return message.chunk.run_id if isinstance(message, Progress) else getattr(message, "run_id", None)
