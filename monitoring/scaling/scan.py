"""A scan: records runs with different numbers of replicas of a service, and leaves as many as there were."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monitoring.campaign.campaign import demo, keep_plan, made_with, record
from monitoring.campaign.platforms import Platform, running_services
from monitoring.recording import read_recording
from monitoring.scaling.speedup import ScanRun
from monitoring.sources.base import MonitorError


@dataclass(frozen=True)
class ScanPlan:
    """What a scan records: ``repeat`` runs with each of the numbers of replicas of a service."""

    platform: str
    service: str
    replicas: Sequence[int]
    events: int
    repeat: int

    def runs(self) -> list[tuple[int, int]]:
        """Return repetition and number of replicas in the order of recording: up, down and up again.

        A machine that becomes slower or faster then changes all numbers alike.
        """
        return [(n, number) for n in range(1, self.repeat + 1) for number in self.replicas[:: 1 if n % 2 else -1]]


class Scan:
    """Records a plan below ``folder``, with the services of ``project``. Recordings that are there are not repeated."""

    def __init__(self, plan: ScanPlan, project: str, folder: Path, say: Callable[[str], None]) -> None:
        self.plan, self.folder = plan, folder
        self._project, self._say = project, say

    def record(self) -> None:
        """Record what is missing.

        Raises MonitorError if a step fails or the folder holds another scan, and KeyboardInterrupt. In any case, the
        service has as many replicas as before in the end.
        """
        keep_plan(self.folder / "scan.json", asdict(self.plan), ("platform", "service", "replicas", "events"))
        missing = [one for one in self.plan.runs() if not self._path(*one).exists()]
        if not missing:
            return
        one, service = running_services(self.plan.platform, self._project, self.folder), self.plan.service
        flags = [*demo(self.plan.events), "--no-plots"]
        self._say(f"starting the services, if they do not run; all output is in {one.log}")
        self._run(one.start, flags, one)
        before = current = one.replicas(service)
        try:
            for index, (repetition, number) in enumerate(missing, 1):
                self._say(f"run {index} of {len(missing)}: {number} × {service}, repetition {repetition}")
                if number != current:
                    current = 0
                    one.scale(service, number)
                    current = number
                    self._run(one.run, flags, one)  # opens the files that new replicas read
                record(one, self._path(repetition, number), partial(one.run, flags))
        except (KeyboardInterrupt, MonitorError):
            self._say(f"to continue, repeat the command with --output {self.folder}")
            raise
        finally:
            if current != before:
                with _uninterrupted():
                    one.scale(service, before)
                self._say(f"{service} has {before} replica{'s' * (before != 1)} again, as before")

    def runs(self) -> dict[int, list[ScanRun]]:
        """Return what is recorded, by number of replicas."""
        found: dict[int, list[ScanRun]] = {}
        for repetition, number in self.plan.runs():
            recording = read_recording(self._path(repetition, number))
            found.setdefault(number, []).append(ScanRun.of(recording, self.plan.service, number))
        return found

    def made_with(self) -> Mapping[str, Any]:
        """Return how the scan was made."""
        plan = self.plan
        numbers = ",".join(map(str, plan.replicas))
        command = f"./{plan.platform}-run.sh --scan {plan.service}={numbers} --events {plan.events}"
        return made_with(f"{command} --repeat {plan.repeat}", "Python and RabbitMQ of the images")

    def _path(self, repetition: int, number: int) -> Path:
        return self.folder / "recordings" / f"{self.plan.service}-{number}-{repetition}.csv"

    def _run(self, run: Callable[[Sequence[str]], int], flags: Sequence[str], one: Platform) -> None:
        if run(flags):
            raise MonitorError(f"a run of {self.plan.events:,} events failed: {one.last_line()}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM, also in commands that are started."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
