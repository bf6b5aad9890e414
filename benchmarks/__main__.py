"""Compare the speed of the pipeline with that of a notebook, coffea and RDataFrame.

    python -m benchmarks [--commands] [--rounds 5] [--cache DIR] [--output benchmarks/results.md]

Makes toy releases, once: one with the size and the branches of the real one of 2020, one of six million events in its
shape, and one of two million events with the branches of the release of 2025. Then the implementations do the same runs
one after the other, in several rounds. With --commands, whole commands are measured instead, from the start of the
process to the picture and to the exit. Needs RabbitMQ as the tests do; ``pip install -e '.[test,benchmarks]'``
installs the packages that the implementations need.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks import commands
from benchmarks.comparison import (
    Distributed,
    Implementation,
    Program,
    Round,
    by_service,
    check,
    markdown,
    table,
    write,
)
from benchmarks.stack import FULL_SIZE, WARM_UP, near_broker, toy_release, warm_stack
from common.settings import RunSettings
from tests.support.paths import ROOT

SIX_MILLION, SIZE_2025 = 6_000_000, 2_000_000


def runs(cache: Path) -> dict[str, RunSettings]:
    """Make the files of the runs that are measured; returns the runs by what they read."""
    of_2020 = toy_release(FULL_SIZE, cache, all_branches=True)
    toy_release(SIX_MILLION, cache)
    of_2025 = toy_release(SIZE_2025, cache, release="demo-2025", all_branches=True)
    measured = {
        "files of the size of the 2020 release, with all its branches": RunSettings(data=str(of_2020)),
        "the demo, which has the branches that are read": RunSettings(release="demo", demo_events=SIX_MILLION),
        "files with the branches of the 2025 release": RunSettings(release="2025e-13tev-beta", data=str(of_2025)),
    }
    return {title: replace(run, plots=False) for title, run in measured.items()}


def measure(implementation: Implementation, run: RunSettings, rounds: dict[str, list[Round]]) -> Round:
    """Add a round of an implementation, checked against the first round of the notebook."""
    measured = implementation.round(run)
    rounds.setdefault(implementation.name, []).append(measured)
    check(implementation.name, measured, rounds["notebook"][0])
    return measured


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to measure (default: 5)")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy releases")
    parser.add_argument("--output", type=Path, help="default: a file in benchmarks/")
    parser.add_argument("--commands", action="store_true", help="measure whole commands, as a person types them")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    output = arguments.output or ROOT / "benchmarks" / f"{'commands' if arguments.commands else 'results'}.md"
    if arguments.commands:
        return commands.main(arguments.rounds, cache, output)
    measured_runs = runs(cache)
    rounds: dict[str, dict[str, list[Round]]] = {title: {} for title in measured_runs}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        broker = held.enter_context(near_broker(folder))
        alone, doubled = (
            held.enter_context(warm_stack(broker, folder / str(n), cache, data_loaders=n, data_processors=n))
            for n in (1, 2)
        )
        distributed = Distributed("RabbitMQ, 1 loader, 1 processor", alone)
        everyone: list[Implementation] = [
            Program("notebook", "notebook", cache, needs="vector"),
            Program("embedded", "embedded", cache),
            distributed,
            Distributed("RabbitMQ, 2 loaders, 2 processors", doubled),
            Program("coffea, a process a core", "coffea", cache, needs="coffea"),
            Program("RDataFrame, a thread a core", "rdataframe", cache, needs="ROOT"),
        ]
        for number in range(1, arguments.rounds + 1):
            for title, run in measured_runs.items():
                for one in (one for one in everyone if one.missing is None):
                    found = measure(one, run, rounds[title])
                    print(
                        f"round {number}: {title}: {one.name}: {found.seconds:.2f} s, CPU {found.cpu:.2f} s", flush=True
                    )
        small = median(distributed.services.run(WARM_UP).seconds for _ in range(arguments.rounds))
        sent = {title: distributed.bytes_of(run) for title, run in measured_runs.items()}
    paragraphs = []
    for title, of_run in rounds.items():
        events = sum(sample["events_read"] for sample in of_run[distributed.name][0].samples.values())
        paragraphs += [
            f"**{events:,} events**, {title}; {sent[title] / events:.0f} bytes an event go through the broker:",
            markdown(table(of_run, events)),
            markdown(by_service(of_run)),
        ]
    write(
        output,
        [
            "# How long a run takes",
            f"Toy events; medians of {arguments.rounds} interleaved "
            "rounds, ratios by round. The notebook's time is that of selection and histogram; the pipeline's is from "
            "the submission to the final result, with the fit and without the plots. Imports are never included. "
            "RabbitMQ runs in a container and is connected to at its own address, as in the Compose stack.",
            *paragraphs,
            f"A demo of {WARM_UP.demo_events:,} events: {small:.2f} s from its submission to its final result, with "
            "one loader and one processor.",
            *(f"Left out: {one.name}, for {one.missing} is not installed." for one in everyone if one.missing),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
