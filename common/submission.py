"""Submit a run and follow it until its result files arrive, over any transport."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from common import messages, topology
from common.analyses import Analyses
from common.delivery import Delivery
from common.errors import BrokerError, MessageError, RunError
from common.messages import (
    CancelRequest,
    FetchProgress,
    FirstFiles,
    Message,
    Progress,
    Result,
    ResultFiles,
    RunFailed,
    RunList,
    RunListRequest,
    RunRequest,
    RunSummary,
    StatusRequest,
)
from common.progress import RunProgress
from common.settings import RunSettings
from common.transport import Session, Transport

log = logging.getLogger(__name__)

#: After so long without a message, the display says what prevents the run: an alarm of the broker, missing services.
QUIET_S = 5.0
#: So long after a message with a wrong signature, a follower ends that has received none with a valid one.
ONLY_REJECTED_S = 10.0
#: How many messages the broker sends a follower ahead.
FOLLOWER_PREFETCH = 100
#: How long a command or a Python program waits for a broker that does not answer, in seconds.
BROKER_CONNECT_TIMEOUT_S = 15.0
#: How long a command waits for the answer of the analysis service, in seconds.
ANSWER_TIMEOUT_S = 20.0
#: What the visualisation changes in a result: figures that cannot be drawn, and its packages. The tables stay the same.
_OF_THE_VISUALISATION = ("problems", "provenance")


class Display(Protocol):
    """Shows a run while it is followed."""

    def progress(self, run: RunProgress) -> None:
        """Show the progress of the run's stages."""
        ...

    def note(self, text: str) -> None:
        """Show what the run is doing or waiting for, until the next progress."""
        ...

    def result(self, document: Mapping[str, Any]) -> None:
        """Show the final result, before its plots are drawn; called again if its numbers change."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the final result and the files of its folder by name, or the problem that prevented them."""

    result: Mapping[str, Any] | None
    files: Mapping[str, bytes]
    problem: str | None = None


def new_run_id(release: str) -> str:
    """Return a unique run id that sorts by time: ``20260131-235959-demo-1f3a``."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{release}-{secrets.token_hex(2)}"


def submit(session: Session, run_id: str, settings: RunSettings) -> None:
    """Submit a run; returns when the broker has confirmed the request, and raises MessageError where it refuses it."""
    session.publish([RunRequest(run_id, time.time(), settings)])


def open_and_submit(transport: Transport, run_id: str, settings: RunSettings) -> Session:
    """Open a session that receives the messages about a run, and submit the run; raises as ``open`` and ``submit``.

    ``settings`` are resolved: their digest puts the run in the list of runs before a data-loader has begun it.
    """
    session = transport.open([topology.follower(run_id)], prefetch=FOLLOWER_PREFETCH)
    try:
        submit(session, run_id, settings)
        session.publish([StatusRequest(run_id, settings.digest)])
    except BaseException:
        session.close()
        raise
    return session


def follow(
    session: Session,
    run_id: str,
    analyses: Analyses,
    display: Display,
    is_alive: Callable[[], bool],
    *,
    settings: RunSettings | None = None,
    first_files: Callable[[Mapping[str, bytes]], None] = lambda files: None,
) -> Outcome:
    """Follow a run until its result files arrive or it fails.

    The display gets the final result when it arrives, and at the latest before
    this function returns. If ``is_alive`` returns False, the function returns an
    outcome without a result. Messages that were published while the connection
    was lost are not received; after reconnecting the follower requests the
    status of the run from the analysis. With the resolved ``settings`` of the
    request, the outcome is a problem if the run was requested before with others.
    ``first_files`` gets the result with its first figure, while the run is fitted or the other figures are drawn.
    Raises RunError if the services have another MESSAGE_KEY.
    """
    progress = RunProgress()
    shown: Mapping[str, Any] | None = None
    last_message = time.monotonic()
    signatures = _Signatures(run_id)
    connections = 1
    while is_alive():
        if session.connections() != connections:
            connections = session.connections()
            session.publish_without_confirm(StatusRequest(run_id))
        delivery = session.receive(0.2)
        signatures.check(delivery)
        if delivery is None:
            last_message = _note_what_prevents_progress(session, display, last_message)
            continue
        session.publish_and_acknowledge(delivery)
        message = _read(delivery, analyses)
        if message is None or messages.run_of(message) != run_id or _is_of_another_request(message, settings):
            continue
        last_message = time.monotonic()
        match message:
            case Progress():
                progress.update(message)
                display.progress(progress)
            case FetchProgress():
                of = "" if message.total_bytes is None else f" of {message.total_bytes / 1e6:.1f}"
                display.note(f"fetching {message.sample}: {message.done_bytes / 1e6:.1f}{of} MB")
            case Result(final=True):
                display.note("drawing the plots")
                if message.result != shown:
                    shown = message.result
                    display.result(shown)
            case FirstFiles():
                first_files(message.files)
            case ResultFiles():
                display.note("")
                changed_later = {part: message.result.get(part) for part in _OF_THE_VISUALISATION}
                if shown is None or message.result != {**shown, **changed_later}:
                    display.result(message.result)
                return Outcome(message.result, message.files)
            case RunFailed():
                return Outcome(None, {}, message.problem)
    return Outcome(None, {}, "the run was stopped before its result arrived")


class _Signatures:
    """Checks whether a follower has the MESSAGE_KEY of the services: without it, no message is valid."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._rejected_since: float | None = None
        self._has_valid = False

    def check(self, delivery: Delivery | None) -> None:
        """Note whether a delivery was rejected, the first one with a warning.

        Raises RunError if ONLY_REJECTED_S have passed since then and none was valid.
        """
        if delivery is not None and delivery.rejection_reason is None:
            self._has_valid = True
        elif delivery is not None and self._rejected_since is None:
            self._rejected_since = time.monotonic()
            log.warning("a %s message is ignored: %s", delivery.kind, delivery.rejection_reason)
        if self._has_valid or self._rejected_since is None:
            return
        if time.monotonic() - self._rejected_since > ONLY_REJECTED_S:
            raise RunError(
                self._run_id,
                "cannot be followed: the signatures of the services are missing or wrong; MESSAGE_KEY must be the same "
                "here and in the services",
            )


def _note_what_prevents_progress(session: Session, display: Display, last_message: float) -> float:
    """Note it if there has been no message for QUIET_S; returns when it was noted, or else ``last_message``."""
    if time.monotonic() - last_message <= QUIET_S:
        return last_message
    missing = topology.consumers_of(session.queues_without_consumer())
    if note := session.blocked() or (missing and f"waiting for {', '.join(missing)}"):
        display.note(note)
    return time.monotonic()


def list_runs(transport: Transport) -> Sequence[RunSummary]:
    """Return the latest runs of a broker, the newest first; raises BrokerError if no analysis service answers."""
    with closing(transport.open([topology.LISTER])) as session:
        request = RunListRequest(secrets.token_hex(8))
        answer = _ask(session, request, lambda one: isinstance(one, RunList) and one.request_id == request.request_id)
        assert isinstance(answer, RunList)
        return answer.runs


def cancel(transport: Transport, run_id: str, digest: str) -> str:
    """Cancel a run whose settings have the digest, unless it has ended; returns how it ended, in words.

    Raises BrokerError if no analysis service answers.
    """
    with closing(transport.open([topology.follower(run_id)], prefetch=FOLLOWER_PREFETCH)) as session:
        answer = _ask(session, CancelRequest(run_id, digest), lambda one: _is_end(one, run_id))
    return answer.problem if isinstance(answer, RunFailed) else "the run had ended before, with a result"


def _is_end(message: Message, run_id: str) -> bool:
    return messages.run_of(message) == run_id and (
        isinstance(message, RunFailed) or (isinstance(message, Result) and message.final)
    )


def _ask(session: Session, request: Message, is_answer: Callable[[Message], bool]) -> Message:
    """Publish a request to the analysis service, and return its answer."""
    if topology.PLANS.name in session.queues_without_consumer():
        raise BrokerError("no analysis service, which has the list of runs, is connected to this broker; start it")
    session.publish([request])
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        delivery = session.receive(0.2)
        if delivery is None:
            continue
        session.publish_and_acknowledge(delivery)
        if delivery.kind in (RunList.kind, RunFailed.kind, Result.kind):
            message = _read(delivery, Analyses())
            if message is not None and is_answer(message):
                return message
    raise BrokerError(
        f"the analysis service has not answered within {ANSWER_TIMEOUT_S:g} s; it may be busy, or have another "
        "MESSAGE_KEY: try again, or look at its log"
    )


def _is_of_another_request(message: Message, settings: RunSettings | None) -> bool:
    """Whether a message is about a request for the same run with other settings, as far as it says."""
    match message:
        case RunFailed(digest=str(digest)):
            return settings is None or digest != settings.digest
        case Result(result=document) | ResultFiles(result=document) if settings is not None:
            ours, its = settings.to_result(toy=True), document.get("settings", {})
            return any(ours[name] != its[name] for name in ("lumi", "fraction", "pt_cuts", "samples") if name in its)
    return False


def _read(delivery: Delivery, analyses: Analyses) -> Message | None:
    """Decode a delivery; returns None if it was rejected, or is not valid, which is logged as a warning."""
    if delivery.rejection_reason is not None:
        return None
    try:
        return messages.decode(delivery.kind, delivery.body, analyses)
    except MessageError as error:
        log.warning("a %s message is ignored: %s", delivery.kind, error)
        return None
