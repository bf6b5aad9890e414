"""Measure how time and memory scale with the number of events of a run.

    python -m benchmarks.scaling [--events 1000000 5000000 20000000] [--rounds 3] [--cache DIR] [--output FILE]

Toy releases of these sizes are processed one after the other by services with RabbitMQ. The time is expected to be
proportional to the number of events, and the memory of each service to be constant.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.comparison import markdown, write
from benchmarks.stack import Measured, Stack, near_broker, toy_release, warm_stack
from common.settings import RunSettings
from tests.support.paths import ROOT

SAMPLE_EVERY_S = 0.2


@contextmanager
def peaks_of(services: Stack) -> Iterator[dict[str, int]]:
    """Record the largest resident memory of each service, in bytes, while the block runs."""
    peaks: dict[str, int] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_EVERY_S):
            for name, memory in services.memory_bytes().items():
                peaks[name] = max(peaks.get(name, 0), memory)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        stop.set()
        watcher.join()


@dataclass(frozen=True)
class SizedRun:
    """A run with its number of events and the largest memory of each service in bytes."""

    events: int
    run: Measured
    peaks: Mapping[str, int]


def rows_of(measured: Sequence[SizedRun]) -> list[list[str]]:
    """Return a row for each size: median times, and the largest memory of each service."""
    services = list(measured[0].peaks)
    rows = [["events", "s", "s a million", "CPU s a million", *(f"{name} MiB" for name in services)]]
    for events in dict.fromkeys(one.events for one in measured):
        runs = [one for one in measured if one.events == events]
        seconds = median(one.run.seconds for one in runs)
        cpu = median(sum(one.run.cpu_seconds.values()) for one in runs)
        rows.append(
            [
                f"{events:,}",
                f"{seconds:.1f}",
                f"{seconds / events * 1e6:.2f}",
                f"{cpu / events * 1e6:.2f}",
                *(f"{max(one.peaks[name] for one in runs) / 2**20:.0f}" for name in services),
            ]
        )
    return rows


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all sizes, each with new services")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy releases")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "scaling.md")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for events in arguments.events:
        toy_release(events, cache)
    measured = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        broker = held.enter_context(near_broker(folder))
        for number in range(1, arguments.rounds + 1):
            stack = folder / str(number)
            stack.mkdir()
            (stack / "cache").symlink_to(cache)
            with warm_stack(broker, stack) as services:
                for events in sorted(arguments.events):  # a service keeps the memory of a larger run
                    with peaks_of(services) as peaks:
                        run = services.run(RunSettings(release="demo", demo_events=events))
                    measured.append(SizedRun(events, run, peaks))
                    print(f"round {number}: {events:,} events: {run.seconds:.1f} s", flush=True)
    write(
        arguments.output,
        [
            "# How time and memory scale with the number of events",
            "Toy releases, from the submission to the final result, through one loader and one processor; medians of "
            f"{arguments.rounds} interleaved rounds. Memory is the largest measured, child processes included.",
            markdown(rows_of(measured)),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
