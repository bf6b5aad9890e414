"""Speed-up, efficiency, Amdahl's law and the limit of a run, from recordings with different numbers of replicas.

With the mean times T(n) of n replicas and n₀ the smallest number, the speed-up is S = T(n₀)/T(n) and the efficiency
S·n₀/n. Amdahl's law (G. M. Amdahl, AFIPS 1967) is T(n) = T(1)·(σ + (1−σ)/n), with the part σ of the time that more
replicas do not shorten. It is linear in 1/n, and fitted by least squares of the relative deviations. The uncertainty
of σ follows from the scatter of the times around the law, which includes what the law does not describe.

The mean number of messages in a queue is the sum of the times that messages spent in it, divided by the duration of
the run (J. D. C. Little, Operations Research 9, 1961).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from monitoring import usage
from monitoring.comparison.compare import Estimate
from monitoring.recording import Recording
from monitoring.sources.base import HOST, MonitorError

#: The stages in the order of the flow, the queue that each consumes, and what its replicas do with a chunk.
STAGES = {
    "data-loader": ("chunks", ("planned", "read")),
    "data-processor": ("events", ("selected",)),
    "analysis": ("selected", ("added",)),
}
#: The machine is the limit if so much of its CPU time is used.
_FULL = 0.9
#: Replicas that work less, while messages wait for them, get their messages too late.
_IDLE = 0.5


@dataclass(frozen=True)
class ScanRun:
    """A recorded run while its events were processed, or the mean of several runs.

    ``replicas`` are those of each stage, ``waiting`` is the mean number of messages in each queue, ``working`` the
    fraction of the time in which the replicas of each stage worked, and ``cores`` the mean cores in use by service.
    """

    seconds: float
    replicas: Mapping[str, int]
    waiting: Mapping[str, float]
    working: Mapping[str, float]
    cores: Mapping[str, float]
    machine_cores: float | None
    digest: str | None

    @classmethod
    def of(cls, recording: Recording, service: str, replicas: int) -> ScanRun:
        """Read a recording with so many replicas of a service; raises MonitorError if its run has no timing."""
        run = recording.part("run")
        seconds, waits = run.get("seconds"), run.get("waits")
        if not seconds or not waits:
            raise MonitorError(f"{recording.name}: the run has no timing")
        numbers = {stage: run["replicas"].get(stage) or 1 for stage in STAGES} | {service: replicas}
        window = np.array([run["analysed"] - seconds, run["analysed"]])
        used = usage.usage_by_service(recording)
        return cls(
            seconds=seconds,
            replicas=numbers,
            waiting={queue: waits.get(f"waited in queue {queue}", 0.0) / seconds for queue, _ in STAGES.values()},
            working={
                stage: sum(waits.get(step, 0.0) for step in steps) / (seconds * numbers[stage])
                for stage, (_, steps) in STAGES.items()
            },
            cores={name: float(np.diff(one.used_at(window))[0]) / seconds for name, one in used.items()},
            machine_cores=recording.header.get("cores"),
            digest=run.get("digest"),
        )

    @classmethod
    def mean(cls, runs: Sequence[ScanRun]) -> ScanRun:
        """Return the mean of runs with the same numbers of replicas."""

        def means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
            return {name: fmean(one.get(name, 0.0) for one in values) for name in values[0]}

        return replace(
            runs[0],
            seconds=fmean(run.seconds for run in runs),
            waiting=means([run.waiting for run in runs]),
            working=means([run.working for run in runs]),
            cores=means([run.cores for run in runs]),
        )

    def limit(self) -> str:
        """Return what limited the run, in words.

        It is the machine, if its cores are in use. Else it is the last stage in the flow with a message waiting for
        each replica: the queues before it fill, and those after it are empty. If its replicas have nothing to do
        although messages wait, it is the broker.
        """
        cores, machine = self.cores, self.machine_cores
        if machine and cores.get(HOST, 0.0) >= _FULL * machine:
            used = sorted(((value, name) for name, value in cores.items() if name != HOST), reverse=True)
            most = " and ".join(f"{name} {value:.2f}" for value, name in used[:2])
            return f"the machine: {cores[HOST]:.2f} of {machine:g} cores were in use, most by {most}"
        for stage, (queue, _) in reversed(STAGES.items()):
            number, waiting, working = self.replicas[stage], self.waiting[queue], self.working[stage]
            if waiting < number:
                continue
            facts = (
                f"{waiting:.1f} messages waited in {queue}, and {number} replica{'s' * (number > 1)} worked "
                f"{working:.0%} of the time with {cores.get(stage, 0.0):.2f} cores"
            )
            if working < _IDLE:
                return f"rabbitmq with {cores.get('rabbitmq', 0.0):.2f} cores: for {stage}, {facts}"
            return f"{stage}: {facts}"
        busiest = max(self.working, key=lambda stage: self.working[stage])
        return (
            f"no stage: few messages waited; the busiest one, {busiest}, worked {self.working[busiest]:.0%} of the time"
        )


@dataclass(frozen=True)
class Point:
    """The runs with one number of replicas, and their means."""

    replicas: int
    runs: Sequence[ScanRun]
    mean: ScanRun
    seconds: Estimate
    speed_up: Estimate
    efficiency: Estimate
    limit: str


def points(runs: Mapping[int, Sequence[ScanRun]]) -> list[Point]:
    """Return the runs by number of replicas, the smallest first."""
    first, *_ = numbers = sorted(runs)
    times = {number: Estimate.of([run.seconds for run in runs[number]]) for number in numbers}
    found = []
    for number in numbers:
        ratio = times[first].over(times[number])
        speed_up = Estimate(1.0, None) if number == first or ratio is None else ratio
        mean = ScanRun.mean(runs[number])
        efficiency = speed_up.times(first / number)
        found.append(Point(number, runs[number], mean, times[number], speed_up, efficiency, mean.limit()))
    return found


@dataclass(frozen=True)
class Amdahl:
    """Amdahl's law as fitted: T(1) in seconds, and σ; its uncertainty is None for two runs."""

    seconds_of_one: float
    serial_fraction: Estimate

    @classmethod
    def fit(cls, measured: Sequence[Point]) -> Amdahl:
        """Fit the law to the runs with two or more numbers of replicas."""
        n = np.array([point.replicas for point in measured for _ in point.runs])
        t = np.array([run.seconds for point in measured for run in point.runs])
        slope, constant = np.polyfit(1 / n, t, 1, w=1 / t)
        error = None
        if len(t) > 2:
            _, covariance = np.polyfit(1 / n, t, 1, w=1 / t, cov=True)
            # σ = c/(b + c), so that dσ/db = −c/(b + c)² and dσ/dc = b/(b + c)².
            gradient = np.array([-constant, slope]) / (slope + constant) ** 2
            error = math.sqrt(gradient @ covariance @ gradient)
        return cls(float(slope + constant), Estimate(float(constant / (slope + constant)), error))

    def seconds(self, replicas: float) -> float:
        """Return T(n)."""
        return self.seconds_of_one * (self.serial_fraction.mean + (1 - self.serial_fraction.mean) / replicas)
