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
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from monitoring import usage
from monitoring.comparison.compare import Estimate
from monitoring.recording import Recording
from monitoring.sources.base import HOST, PIPELINE_SERVICES, MonitorError

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
    """A recorded run, while its events were processed.

    ``waiting`` is the mean number of messages in each queue, ``working`` the fraction of the time in which the
    replicas of each stage worked, ``cores`` the mean cores in use by service, and ``machine_cores`` what there are.
    ``digest`` is that of the histograms.
    """

    replicas: int
    seconds: float
    events: int
    stage_replicas: Mapping[str, int]
    waiting: Mapping[str, float]
    working: Mapping[str, float]
    cores: Mapping[str, float]
    machine_cores: float | None
    digest: str | None

    @classmethod
    def of(cls, recording: Recording, service: str, replicas: int) -> ScanRun:
        """Read a recording with so many replicas of a service; raises MonitorError if its run has no timing."""
        run = recording.header.get("run") or {}
        seconds, waits = run.get("seconds"), run.get("waits")
        if not seconds or not waits:
            raise MonitorError(f"{recording.name}: the run has no timing")
        numbers = {stage: run.get("replicas", {}).get(stage) or 1 for stage in STAGES} | {service: replicas}
        window = np.array([run["analysed"] - seconds, run["analysed"]])
        used = usage.usage_by_service(recording)
        return cls(
            replicas=replicas,
            seconds=seconds,
            events=run["events"],
            stage_replicas=numbers,
            waiting={queue: waits.get(f"waited in queue {queue}", 0.0) / seconds for queue, _ in STAGES.values()},
            working={
                stage: sum(waits.get(step, 0.0) for step in steps) / (seconds * numbers[stage])
                for stage, (_, steps) in STAGES.items()
            },
            cores={name: float(np.diff(one.used_at(window))[0]) / seconds for name, one in used.items()},
            machine_cores=recording.header.get("cores"),
            digest=run.get("digest"),
        )


@dataclass(frozen=True)
class Point:
    """The runs with one number of replicas, and their means."""

    replicas: int
    runs: Sequence[ScanRun]
    seconds: Estimate
    speed_up: Estimate
    efficiency: Estimate
    limit: str

    def mean(self, values: str) -> dict[str, float]:
        """Return the means of ``waiting``, ``working`` or ``cores`` by name."""
        return _means([getattr(run, values) for run in self.runs])


@dataclass(frozen=True)
class Amdahl:
    """Amdahl's law as fitted: T(1) in seconds, σ, and the largest relative deviation of a mean time from it.

    The uncertainty of σ is None for two runs.
    """

    seconds_of_one: float
    serial_fraction: Estimate
    largest_deviation: float

    def seconds(self, replicas: float) -> float:
        """Return T(n)."""
        return self.seconds_of_one * (self.serial_fraction.mean + (1 - self.serial_fraction.mean) / replicas)


def points(runs: Sequence[ScanRun]) -> list[Point]:
    """Return the runs by number of replicas, the smallest first."""
    numbers = sorted({run.replicas for run in runs})
    groups = {number: [run for run in runs if run.replicas == number] for number in numbers}
    times = {number: Estimate.of([run.seconds for run in members]) for number, members in groups.items()}
    found = []
    for number, members in groups.items():
        ratio = times[numbers[0]].over(times[number])
        speed_up = Estimate(1.0, None) if number == numbers[0] or ratio is None else ratio
        efficiency = speed_up.times(numbers[0] / number)
        found.append(Point(number, members, times[number], speed_up, efficiency, limit(members)))
    return found


def fit(measured: Sequence[Point]) -> Amdahl | None:
    """Fit Amdahl's law; None for a single number of replicas."""
    if len(measured) < 2:
        return None
    runs = [run for point in measured for run in point.runs]
    x, y = np.array([1 / run.replicas for run in runs]), np.array([run.seconds for run in runs])
    (slope, constant), error = np.polyfit(x, y, 1, w=1 / y), None
    if len(runs) > 2:
        _, covariance = np.polyfit(x, y, 1, w=1 / y, cov=True)
        # σ = c/(b + c), so that dσ/db = −c/(b + c)² and dσ/dc = b/(b + c)².
        gradient = np.array([-constant, slope]) / (slope + constant) ** 2
        error = math.sqrt(gradient @ covariance @ gradient)
    law = Amdahl(float(slope + constant), Estimate(float(constant / (slope + constant)), error), 0.0)
    deviations = [abs(point.seconds.mean / law.seconds(point.replicas) - 1) for point in measured]
    return Amdahl(law.seconds_of_one, law.serial_fraction, max(deviations))


def limit(runs: Sequence[ScanRun]) -> str:
    """Return what limited runs with the same number of replicas, in words.

    It is the machine, if its cores are in use. Else it is the last stage in the flow with a message waiting for each
    replica: the queues before it fill, and those after it are empty. If its replicas have nothing to do although
    messages wait, it is the broker.
    """
    waiting, working, cores = (_means([getattr(run, name) for run in runs]) for name in ("waiting", "working", "cores"))
    machine = runs[0].machine_cores
    if machine and cores.get(HOST, 0.0) >= _FULL * machine:
        used = sorted(((cores.get(name, 0.0), name) for name in PIPELINE_SERVICES), reverse=True)[:2]
        services = " and ".join(f"{name} {value:.2f}" for value, name in used)
        return f"the machine: {cores[HOST]:.2f} of {machine:g} cores were in use, {services}"
    for stage, (queue, _) in reversed(STAGES.items()):
        number = runs[0].stage_replicas[stage]
        if waiting[queue] < number:
            continue
        facts = (
            f"{waiting[queue]:.1f} messages waited in {queue}, and {number} replica{'s' * (number > 1)} worked "
            f"{working[stage]:.0%} of the time with {cores.get(stage, 0.0):.2f} cores"
        )
        if working[stage] < _IDLE:
            return f"rabbitmq with {cores.get('rabbitmq', 0.0):.2f} cores: for {stage}, {facts}"
        return f"{stage}: {facts}"
    busiest = max(working, key=lambda stage: working[stage])
    return f"no stage: few messages waited; the busiest one, {busiest}, worked {working[busiest]:.0%} of the time"


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(one.get(name, 0.0) for one in values) for name in values[0]}
