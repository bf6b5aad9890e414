"""Complete runs of the pipeline, embedded and on a broker, and the numbers of their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import settings, topology
from common.progress import RunProgress
from common.settings import BrokerSettings, RunSettings
from common.submission import Outcome, follow, new_run_id, submit
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from workers.embedded import EmbeddedServices

DEADLINE_S = 90


class QuietDisplay:
    """A display that prints nothing. ``events`` has the number of events that each stage has finished."""

    def __init__(self, on_progress: Callable[[Mapping[str, int]], None] = lambda events: None) -> None:
        self.events: dict[str, int] = {}
        self.on_progress = on_progress

    def progress(self, run: RunProgress) -> None:
        self.events = {stage: done.events for stage, done in run.stages.items()}
        self.on_progress(self.events)

    def note(self, text: str) -> None: ...

    def result(self, document: Mapping[str, Any]) -> None: ...


def before_deadline(deadline_s: float = DEADLINE_S) -> Callable[[], bool]:
    """Return a function that is true for so many seconds, for ``is_alive`` of ``follow``."""
    deadline = time.monotonic() + deadline_s
    return lambda: time.monotonic() < deadline


def run_embedded(run: RunSettings, cache: Path, **replicas: Any) -> Outcome:
    """Do a run in this process; its chunks are read in threads."""
    read = settings.read({"CACHE": str(cache)})
    with EmbeddedServices(read, processes=0, **replicas) as services:
        session = services.transport.open([topology.follower("run")])
        submit(session, "run", run)
        return follow(session, "run", ANALYSES, QuietDisplay(), services.is_alive)


def run_on_broker(
    settings: BrokerSettings,
    run: RunSettings,
    display: QuietDisplay | None = None,
    run_id: str | None = None,
    is_alive: Callable[[], bool] | None = None,
) -> Outcome:
    """Submit a run to a virtual host and follow it."""
    run_id = run_id or new_run_id(run.release)
    session = RabbitMQTransport(settings, connect_timeout_s=30).open([topology.follower(run_id)], prefetch=100)
    try:
        submit(session, run_id, run)
        return follow(
            session,
            run_id,
            ANALYSES,
            display or QuietDisplay(),
            is_alive or before_deadline(),
            settings=ANALYSES.resolve(run),
        )
    finally:
        session.close()


def numbers(outcome: Outcome) -> str:
    """Return the parts of a result that must not depend on how the run was done, as JSON with all digits."""
    assert outcome.problem is None
    result = json.loads(outcome.files["result.json"])
    assert result == outcome.result
    return numbers_of(result)


def numbers_of(result: Mapping[str, Any]) -> str:
    """Return the same for the document of a result.json."""
    kept = ("samples", "categories", "histograms", "window", "problems", "complete")
    return json.dumps({key: result[key] for key in kept})
