"""How time and memory grow with the events of a run.

    python -m benchmarks.growth [--events 1000000 5000000 20000000] [--cache DIR] [--output benchmarks/growth.md]

Toy releases of these sizes go, one after the other, through warm services on RabbitMQ. Time has to grow as the
events do, and the memory of each service not at all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.contest import markdown, write
from benchmarks.releases import toy_release
from benchmarks.stack import Measured, Stack, near_broker, warm_stack
from common.settings import RunSettings
from tests.conftest import ROOT

SAMPLE_EVERY_S = 0.2


@contextmanager
def peaks_of(services: Stack) -> Iterator[dict[str, int]]:
    """The largest resident memory of each service, in bytes, while the block runs."""
    peaks: dict[str, int] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_EVERY_S):
            for name, memory in services.memory_bytes().items():
                peaks[name] = max(peaks.get(name, 0), memory)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def rows_of(measured: Sequence[tuple[int, Measured, dict[str, int]]]) -> list[list[str]]:
    """A row a size: seconds, seconds a million events, and what each service needed at most."""
    services = list(measured[0][2])
    rows = [["events", "s", "s a million", "CPU s a million", *(f"{name} MiB" for name in services)]]
    for events, run, peaks in measured:
        millions = events / 1e6
        cpu = sum(run.cpu_seconds.values())
        rows.append(
            [
                f"{events:,}",
                f"{run.seconds:.1f}",
                f"{run.seconds / millions:.2f}",
                f"{cpu / millions:.2f}",
                *(f"{peaks[name] / 2**20:.0f}" for name in services),
            ]
        )
    return rows


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="where the toy releases are kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "growth.md")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for events in arguments.events:
        toy_release(events, cache)
    measured = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        (folder / "stack").mkdir()
        (folder / "stack" / "cache").symlink_to(cache)
        services = held.enter_context(warm_stack(held.enter_context(near_broker(folder)), folder / "stack"))
        for events in arguments.events:
            with peaks_of(services) as peaks:
                run = services.run(RunSettings(release="demo", demo_events=events))
            measured.append((events, run, peaks))
            print(f"{events:,} events: {run.seconds:.1f} s", flush=True)
    write(
        arguments.output,
        [
            "# How time and memory grow with the events",
            "Toy releases, from the submission to the final result, through one loader and one processor; memory is "
            "the largest seen, children included.",
            markdown(rows_of(measured)),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
