"""Measure how a stage of the pipeline scales with its replicas, each limited to a part of a core.

    python -m benchmarks.replicas [--stage data-processor] [--cores 0.25] [--replicas 1 2 4] [--events 2000000]
                                  [--cache DIR] [--output FILE]

The replicas of the stage are containers of its image (IMAGE_TAG) with a CPU limit. The broker, two processes of the
other stage and the other services are processes without a limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.comparison import markdown, write
from benchmarks.resource_usage import cpu_seconds
from benchmarks.stack import WARM_UP, empty_stack, toy_release, wait_for_consumers
from common.settings import BrokerSettings, RunSettings
from tests.support.paths import ROOT

#: The stages that can have replicas, and the number of processes of the other one while a stage is measured.
STAGES = ("data-processor", "data-loader")
OTHERS = 2


@dataclass(frozen=True)
class Scaled:
    """A run with a number of replicas of a stage: its seconds, and the CPU seconds of the stage and of the others."""

    replicas: int
    seconds: float
    stage_cpu_s: float
    others_cpu_s: Mapping[str, float]


@contextmanager
def limited(service: str, vhost: BrokerSettings, cores: float, cache: Path) -> Iterator[psutil.Process]:
    """Run a container of a service that is limited to ``cores``; yields its first process."""
    variables = {
        "RABBITMQ_HOST": vhost.host,
        "RABBITMQ_PORT": vhost.port,
        "RABBITMQ_USER": vhost.user,
        "RABBITMQ_PASS": vhost.password,
        "RABBITMQ_VHOST": vhost.vhost,
        "CACHE": "/cache",
    }
    command = ["docker", "run", "--detach", "--rm", "--network", "host", "--cpus", str(cores)]
    command += ["--user", str(os.getuid()), "--volume", f"{cache}:/cache"]
    command += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    image = f"{service}:{os.environ.get('IMAGE_TAG', 'latest')}"
    container = subprocess.check_output([*command, image], text=True).strip()  # noqa: S603  our own image
    try:
        inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
        yield psutil.Process(int(subprocess.check_output(inspect)))  # noqa: S603  our own container
    finally:
        stop = ["docker", "stop", "--time", "10", container]
        subprocess.run(stop, check=True, capture_output=True)  # noqa: S603  our own container


def measure(stage: str, replicas: int, cores: float, events: int, cache: Path) -> Scaled:
    """Measure a run with a number of replicas of a stage, after a small run for warming up."""
    with ExitStack() as held:
        services = held.enter_context(empty_stack(cache))
        services.workers.start("analysis")
        services.workers.start("visualisation")
        for other in STAGES:
            if other != stage:
                services.workers.start(other.replace("-", "_"), OTHERS)
        limits = [held.enter_context(limited(stage, services.vhost, cores, cache)) for _ in range(replicas)]
        wait_for_consumers(services.vhost)
        services.run(WARM_UP)
        before = sum(map(cpu_seconds, limits))
        measured = services.run(RunSettings(release="demo", demo_events=events))
        others = {name: cpu for name, cpu in measured.cpu_seconds.items() if cpu}
        return Scaled(replicas, measured.seconds, sum(map(cpu_seconds, limits)) - before, others)


def rows_of(measured: Sequence[Scaled], events: int) -> list[list[str]]:
    """Return the table; the efficiency is the time with one replica divided by N times the time with N."""
    rows = [["replicas", "s", "million events/s", "efficiency", "stage's CPU s", "cores of the others", "of all"]]
    first = measured[0]
    for one in measured:
        efficiency = first.seconds * first.replicas / (one.seconds * one.replicas)
        used = ", ".join(f"{name} {cpu / one.seconds:.2f}" for name, cpu in one.others_cpu_s.items())
        cores = (one.stage_cpu_s + sum(one.others_cpu_s.values())) / one.seconds
        rate = events / one.seconds / 1e6
        numbers = [f"{one.seconds:.1f}", f"{rate:.2f}", f"{efficiency:.0%}", f"{one.stage_cpu_s:.2f}"]
        rows.append([str(one.replicas), *numbers, used, f"{cores:.2f}"])
    return rows


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replicas", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--cores", type=float, nargs="+", default=[0.25], help="CPU limit of a replica")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy releases")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "replicas.md")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for events in (arguments.events, WARM_UP.demo_events):
        toy_release(events, cache)
    paragraphs = [
        "# How a stage scales with its replicas",
        f"{arguments.events:,} toy events. The replicas of one stage are containers limited to a part of a core; "
        f"the others are processes without a limit, {OTHERS} of the other stage among them. The efficiency of N "
        "replicas is the time with one divided by N times the time with N, from the submission to the final result.",
    ]
    for stage in arguments.stage:
        for cores in arguments.cores:
            measured = []
            for replicas in arguments.replicas:
                measured.append(measure(stage, replicas, cores, arguments.events, cache))
                print(stage, cores, measured[-1], flush=True)
            title = f"**{stage}**, each replica limited to {cores:g} cores:"
            paragraphs += [title, markdown(rows_of(measured, arguments.events))]
    write(arguments.output, paragraphs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
