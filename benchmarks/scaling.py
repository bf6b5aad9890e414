"""Measure how time and memory scale with the number of events of a run, also those of other implementations.

    python -m benchmarks.scaling [--events 1000000 5000000 20000000 60000000] [--rounds 3] [--cache DIR] [--output FILE]

Toy releases of these sizes are processed one after the other by services with RabbitMQ, which are new in each round,
and by the implementations of ``python -m benchmarks``. The time is expected to grow linearly with the number of
events, and the memory of each service to be constant.
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

from benchmarks.comparison import Implementation, Program, Round, check, markdown, write
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


def compared(found: Mapping[str, dict[int, list[Round]]]) -> list[list[str]]:
    """Return a row for each size: the median seconds of each implementation, and of its ratios to the notebook's."""
    reference = next(iter(found.values()))
    rows = [["events", *(f"{name} s" for name in found)]]
    for events, others in reference.items():
        cells = []
        for of_size in found.values():
            seconds = [one.seconds for one in of_size[events]]
            ratio = median(one / other.seconds for one, other in zip(seconds, others, strict=True))
            cells.append(f"{median(seconds):.1f} ({ratio:.2f})")
        rows.append([f"{events:,}", *cells])
    return rows


def linearity(measured: Sequence[SizedRun]) -> str:
    """Return in words how far the median times are from the line through those of the smallest and the largest size."""
    sizes = sorted({one.events for one in measured})
    seconds = [median(one.run.seconds for one in measured if one.events == events) for events in sizes]
    slope = (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
    fixed = seconds[0] - slope * sizes[0]
    apart = [
        f"{100 * (took / (fixed + slope * events) - 1):+.0f} %" for events, took in zip(sizes, seconds, strict=True)
    ]
    return (
        f"The line through the smallest and the largest size is {fixed:.2f} s + {1e6 * slope:.2f} s a million events; "
        f"the others are {', '.join(apart[1:-1])} from it."
    )


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000, 60_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all sizes, each with new services")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy releases")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "scaling.md")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    if len(set(arguments.events)) < 3:
        parser.error(f"--events needs three sizes or more, to see whether they are on a line, not {arguments.events}")
    sizes = sorted(arguments.events)  # a service keeps the memory of a larger run
    programs: list[Implementation] = [
        Program("notebook", "notebook", cache, needs="vector"),
        Program("embedded", "embedded", cache),
        Program("coffea", "coffea", cache, needs="coffea"),
        Program("RDataFrame", "rdataframe", cache, needs="ROOT"),
    ]
    programs = [one for one in programs if one.missing is None]
    measured: list[SizedRun] = []
    found: dict[str, dict[int, list[Round]]] = {name: {} for name in (*(one.name for one in programs), "RabbitMQ")}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        broker = held.enter_context(near_broker(folder))
        for number in range(1, arguments.rounds + 1):
            with warm_stack(broker, folder / str(number), cache) as services:
                for events in sizes:
                    toy_release(events, cache)  # also reads what other sizes may have displaced from the page cache
                    run = RunSettings(release="demo", demo_events=events, plots=False)
                    rounds = {one.name: one.round(run) for one in programs}
                    with peaks_of(services) as peaks:
                        measured.append(SizedRun(events, services.run(run), peaks))
                    last = measured[-1].run
                    rounds["RabbitMQ"] = Round(last.seconds, last.cpu_seconds, last.result["samples"])
                    for name, one in rounds.items():
                        check(name, one, rounds["notebook"])
                        found[name].setdefault(events, []).append(one)
                        print(f"round {number}: {events:,} events: {name}: {one.seconds:.1f} s", flush=True)
    write(
        arguments.output,
        [
            "# How time and memory scale with the number of events",
            "Toy releases, from the submission to the final result, through one loader and one processor; medians of "
            f"{arguments.rounds} round(s). The files are in the page cache. Memory is the largest measured, child "
            "processes included.",
            markdown(rows_of(measured)),
            linearity(measured),
            "Seconds of the implementations of [results.md](results.md), in brackets the ratio to the notebook:",
            markdown(compared(found)),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
