"""Compare the speed of the pipeline with that of a notebook, coffea and RDataFrame.

    python -m benchmarks [--commands] [--rounds 5] [--cache DIR] [--output benchmarks/results.md]

Makes a toy release with the size and the branches of the real one of 2020, once, and one of as many simulated events
in the shape of the release of 2025, with the branches that are read. Then the implementations do the same run one
after the other, in several rounds; for 2025 these are the notebook and the pipeline without a broker. With --commands,
whole commands are measured instead, from the start of the process to the picture and to the exit. Needs RabbitMQ
as the tests do; ``pip install -e '.[test,benchmarks]'`` installs the packages that the implementations need.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks import commands
from benchmarks.comparison import Implementation, Round, by_service, check, markdown, table, write
from benchmarks.stack import FULL_SIZE, WARM_UP, BenchmarkError, Stack, entries_of, near_broker, toy_release, warm_stack
from common.settings import RunSettings
from tests.support.paths import ROOT


class Program(Implementation):
    """An implementation that runs in a new process for each round."""

    def __init__(self, name: str, module: str, cache: Path, needs: str = "") -> None:
        super().__init__(name)
        self.missing = needs if needs and importlib.util.find_spec(needs) is None else None
        self._command = [sys.executable, "-m", f"benchmarks.implementations.{module}"]
        self._cache = cache

    def round(self, run: RunSettings) -> Round:
        """Run the program and read the measurement that it prints."""
        settings = {"release": run.release, "data": run.data, "demo_events": run.demo_events}
        command = [*self._command, json.dumps(settings), str(self._cache)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603  our own
        if ran.returncode:
            raise BenchmarkError(f"{self.name} failed: {ran.stderr.strip()[-500:]}")
        answer = json.loads(ran.stdout.splitlines()[-1])
        return Round(answer["seconds"], {"process": answer["cpu_seconds"]}, answer["samples"])


class Distributed(Implementation):
    """The pipeline with RabbitMQ, whose services run all the time."""

    def __init__(self, name: str, services: Stack) -> None:
        super().__init__(name)
        self.services = services

    def round(self, run: RunSettings) -> Round:
        """Measure a run from its submission to its final result."""
        measured = self.services.run(run)
        return Round(measured.seconds, measured.cpu_seconds, measured.result["samples"])

    def bytes_of(self, run: RunSettings) -> int:
        """Return the number of bytes that a run sends through the broker."""
        before = self.services.bytes_through_broker()
        self.round(run)
        return self.services.bytes_through_broker() - before


def measure(number: int, implementation: Implementation, run: RunSettings, rounds: dict[str, list[Round]]) -> None:
    """Add a round of an implementation, checked against the first round of the notebook, and print its times."""
    measured = implementation.round(run)
    rounds.setdefault(implementation.name, []).append(measured)
    check(implementation.name, measured, rounds["notebook"][0])
    print(
        f"round {number}: {run.release}: {implementation.name}: {measured.seconds:.2f} s, CPU {measured.cpu:.2f} s",
        flush=True,
    )


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds to measure (default: 5)")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy release")
    parser.add_argument("--output", type=Path, help="default: a file in benchmarks/")
    parser.add_argument("--commands", action="store_true", help="measure whole commands, as a person types them")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    output = arguments.output or ROOT / "benchmarks" / f"{'commands' if arguments.commands else 'results'}.md"
    if arguments.commands:
        return commands.main(arguments.rounds, cache, output)
    run = RunSettings(data=str(toy_release(FULL_SIZE, cache, all_branches=True)))
    run_2025 = RunSettings(release="demo-2025", demo_events=FULL_SIZE)
    toy_release(FULL_SIZE, cache, release=run_2025.release)
    rounds: dict[str, list[Round]] = {}
    rounds_2025: dict[str, list[Round]] = {}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        broker = held.enter_context(near_broker(folder))
        alone, doubled = (
            held.enter_context(warm_stack(broker, folder / str(n), data_loaders=n, data_processors=n)) for n in (1, 2)
        )
        distributed = Distributed("RabbitMQ, 1 loader, 1 processor", alone)
        notebook, embedded = (
            Program("notebook", "notebook", cache, needs="vector"),
            Program("embedded", "embedded", cache),
        )
        everyone: list[Implementation] = [
            notebook,
            embedded,
            distributed,
            Distributed("RabbitMQ, 2 loaders, 2 processors", doubled),
            Program("coffea, a process a core", "coffea", cache, needs="coffea"),
            Program("RDataFrame, a thread a core", "rdataframe", cache, needs="ROOT"),
        ]
        for number in range(1, arguments.rounds + 1):
            for implementation in (one for one in everyone if one.missing is None):
                measure(number, implementation, run, rounds)
            for implementation in (notebook, embedded):
                measure(number, implementation, run_2025, rounds_2025)
        small = median(distributed.services.run(WARM_UP).seconds for _ in range(arguments.rounds))
        sent = distributed.bytes_of(run)
    events = sum(sample["events_read"] for sample in rounds[distributed.name][0].samples.values())
    events_2025 = entries_of(FULL_SIZE, cache, run_2025.release)
    write(
        output,
        [
            "# How long a run of the 2020 release's size takes",
            f"{events:,} toy events with the branches of the real ones; medians of {arguments.rounds} interleaved "
            "rounds, ratios by round. The notebook's time is that of selection and histogram; the pipeline's is from "
            "the submission to the final result, with the fit and without the plots. Imports are never included. "
            "RabbitMQ runs in a container and is connected to at its own address, as in the Compose stack.",
            markdown(table(rounds, events)),
            markdown(by_service(rounds)),
            f"The toy release in the shape of that of 2025, {events_2025:,} events in files with the "
            "branches that are read, in the same rounds:",
            markdown(table(rounds_2025, events_2025)),
            f"Through the broker: {sent / events:.0f} bytes an event. A demo of {WARM_UP.demo_events:,} events: "
            f"{small:.2f} s from its submission to its final result.",
            *(f"Left out: {one.name}, for {one.missing} is not installed." for one in everyone if one.missing),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
