"""A campaign: its steps in order, each recorded to a file, and what is still missing after an interruption."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from monitoring import sources
from monitoring.campaign.platforms import ROOT, Platform, open_platform
from monitoring.comparison.costs import Repetition
from monitoring.recorder import Recorder, RecordingOptions
from monitoring.recording import Recording, read_recording
from monitoring.sources.base import MonitorError

#: Simulated events of the run that a stack is started with.
START_EVENTS = 20_000
#: What is recorded in each repetition: the idle services, and runs of either size.
PHASES = ("idle", "small", "large")


@dataclass(frozen=True)
class Plan:
    """What a campaign records. ``idle_s`` are the seconds of the idle stack, summed over repetitions."""

    platforms: Sequence[str]
    events: tuple[int, int]
    repeat: int
    idle_s: float

    def blocks(self) -> list[tuple[int, str]]:
        """Return repetition and platform in the order of recording: the first platform rotates."""
        count = len(self.platforms)
        return [(n + 1, self.platforms[(n + k) % count]) for n in range(self.repeat) for k in range(count)]


class Campaign:
    """Records a plan below ``folder``. Recordings that are there are not repeated."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.folder = folder
        self.failures: list[str] = []
        self._say = say

    def path(self, kind: str, number: int, phase: str) -> Path:
        """Return the file of a recording; ``phase`` is start, idle, small or large."""
        return self.folder / "recordings" / f"{kind}-{number}-{phase}.csv"

    def record(self) -> None:
        """Record what is missing. A step that fails is in ``failures``, and the campaign goes on.

        Raises MonitorError if the folder holds a campaign of another plan, and KeyboardInterrupt after stopping all
        services.
        """
        keep_plan(self.folder / "campaign.json", asdict(self.plan), ("events",))
        blocks = [block for block in self.plan.blocks() if self._missing(*block)]
        available: dict[str, Platform] = {}
        for kind in dict.fromkeys(kind for _, kind in blocks):
            try:
                available[kind] = open_platform(kind, self.folder)
            except MonitorError as error:
                self.failures.append(str(error))
        up: set[str] = set()
        warm: set[str] = set()
        blocks = [block for block in blocks if block[1] in available]
        try:
            for index, (number, kind) in enumerate(blocks, 1):
                phases = self._missing(number, kind)
                self._say(f"block {index} of {len(blocks)}: {kind}, repetition {number}: {', '.join(phases)}")
                self._block(available[kind], number, phases, up, warm)
        finally:
            for one in available.values():
                one.remove()

    def _missing(self, number: int, kind: str) -> list[str]:
        return [phase for phase in PHASES if not self.path(kind, number, phase).exists()]

    def _block(self, one: Platform, number: int, phases: Sequence[str], up: set[str], warm: set[str]) -> None:
        """Record the phases of a repetition on one platform; the first block generates the files that are read."""
        try:
            if one.kind not in up:
                record(one, self.path(one.kind, number, "start"), partial(one.start, demo(START_EVENTS)))
                up.add(one.kind)
            if one.kind not in warm:
                for events in self.plan.events:
                    if one.run(demo(events)):
                        raise MonitorError(f"{one.kind}: a run of {events:,} events failed: see {one.log}")
                warm.add(one.kind)
            for phase in phases:
                work = None if phase == "idle" else partial(one.run, demo(self.plan.events[phase == "large"]))
                record(one, self.path(one.kind, number, phase), work, self.plan.idle_s / self.plan.repeat)
        except MonitorError as error:
            self.failures.append(str(error))
            self._say(str(error))
            one.stop()
            up.discard(one.kind)
            warm.discard(one.kind)
        if not one.stays_up and one.kind in up:
            one.stop()
            up.discard(one.kind)

    def made_with(self) -> Mapping[str, Any]:
        """Return how the campaign was made."""
        plan = self.plan
        return made_with(
            f"cpu_monitor.py campaign --platforms {','.join(plan.platforms)} "
            f"--events {plan.events[0]} {plan.events[1]} --repeat {plan.repeat} --idle {plan.idle_s:g}",
            f"process: Python {platform.python_version()} and RabbitMQ of this machine; others: of the images",
        )

    def repetitions(self) -> dict[str, list[Repetition]]:
        """Return the complete repetitions by platform; platforms without one are left out."""
        found: dict[str, list[Repetition]] = {}
        for kind in self.plan.platforms:
            for number in range(1, self.plan.repeat + 1):
                parts: dict[str, Recording] = {}
                for phase in (*PHASES, "start"):
                    if (path := self.path(kind, number, phase)).exists():
                        parts[phase] = read_recording(path)
                if set(PHASES) <= parts.keys():
                    found.setdefault(kind, []).append(Repetition(**parts))
        return found


def demo(events: int) -> list[str]:
    """Return the flags of a run of simulated events."""
    return ["--release", "demo", "--demo-events", str(events)]


def record(one: Platform, path: Path, work: Callable[[], int] | None, idle_s: float = 0.0) -> None:
    """Record a run, which ``work`` does, to a file; without ``work`` the idle services, for ``idle_s`` seconds.

    Raises MonitorError if it fails, KeyboardInterrupt if it was interrupted.
    """
    unfinished = path.with_name(f"unfinished-{path.name}")
    options = RecordingOptions(
        work=work,
        duration_s=math.inf if work else idle_s,
        outputs=[unfinished],
        label=one.kind,
        result_folders=[one.output],
    )
    opened = sources.open_source(one.kind, sources.SourceOptions(one.project, one.project, 1.0, True), ())
    with closing(opened) as source:
        recorder = Recorder(source, options, lambda _: None)
        recording = recorder.run()
    if recorder.interrupted:
        raise KeyboardInterrupt
    run = recording.header["run"] or {}
    if recorder.exit_code or recorder.not_written or (work and not run.get("complete")):
        reasons = "; ".join(recording.header["problems"]) or one.last_line()
        raise MonitorError(f"the recording {path.stem} failed: {reasons}")
    os.replace(unfinished, path)


def keep_plan(path: Path, plan: Mapping[str, Any], fixed: Sequence[str]) -> None:
    """Write a plan; raises MonitorError if there is one that differs in the values of ``fixed``."""
    folder = f"--output {path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = json.loads(json.dumps(plan))
        before = json.loads(path.read_text()) if path.exists() else plan
        for name in fixed:
            if before[name] != plan[name]:
                raise MonitorError(f"{folder} holds recordings with {name} {before[name]}; name another")
        path.write_text(json.dumps(plan, indent=1) + "\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MonitorError(f"{folder}: {error}") from None


def made_with(command: str, software: str) -> Mapping[str, Any]:
    """Return how recordings were made: command, commit, machine, software and time."""
    commit = subprocess.run(  # noqa: S603  a fixed command
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "command": command,
        "commit": commit.stdout.strip() or None,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "software": software,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
