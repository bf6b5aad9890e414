"""How fast the pipeline is, against a notebook and what else the field uses, measured side by side.

    python -m benchmarks [--rounds 5] [--cache DIR] [--output benchmarks/results.md]

Makes a toy release of the size and the branches of the real one, once. Then every contestant does the same run,
one after the other, round by round. Needs RabbitMQ as the tests do; ``pip install -r benchmarks/requirements.txt``
has what the contestants need.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.contest import Contestant, Round, check, report
from benchmarks.stack import ROOT, BenchmarkError, Stack, broker_of_our_own, stack
from common import catalogue
from common.settings import RunSettings
from workers.data_loader.demo import demo_file

#: The simulated events of the 2020 release's 4lep files, by the catalogue.
FULL_SIZE = sum(sample.entries for sample in catalogue.release("demo").samples if not sample.is_data)


def full_size_release(cache: Path) -> Path:
    """The directory of a toy release with all entries and branches of the real one, made where it is missing."""
    release = catalogue.release("demo")
    paths = [demo_file(sample, release, FULL_SIZE, cache / "benchmarks", all_branches=True) for sample in release.samples]
    return paths[0].parents[1]


class Program(Contestant):
    """One of the contestants in a process of its own."""

    def __init__(self, name: str, module: str, cache: Path, needs: str = "") -> None:
        super().__init__(name)
        self.missing = needs if needs and importlib.util.find_spec(needs) is None else None
        self._command = [sys.executable, "-m", f"benchmarks.contestants.{module}"]
        self._cache = cache

    def round(self, run: RunSettings) -> Round:
        """Run the program, and read what it says."""
        command = [*self._command, json.dumps({"data": run.data}), str(self._cache)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603  our own
        if ran.returncode:
            raise BenchmarkError(f"{self.name} failed: {ran.stderr.strip()[-500:]}")
        answer = json.loads(ran.stdout.splitlines()[-1])
        return Round(answer["seconds"], {"process": answer["cpu_seconds"]}, answer["samples"])


class Distributed(Contestant):
    """Warm services on a RabbitMQ."""

    def __init__(self, name: str, services: Stack) -> None:
        super().__init__(name)
        self.services = services

    def round(self, run: RunSettings) -> Round:
        """One run, from its submission to its final result."""
        measured = self.services.run(run)
        return Round(measured.seconds, measured.cpu_seconds, measured.result["samples"])


@contextlib.contextmanager
def contestants(cache: Path, folder: Path) -> Iterator[list[Contestant]]:
    """Everyone, with two stacks of services on one broker, each warm."""
    with contextlib.ExitStack() as held:
        broker, pid = held.enter_context(broker_of_our_own(folder))
        alone, doubled = (
            held.enter_context(stack(broker.on_new_vhost(), pid, folder / str(n), data_loaders=n, data_processors=n))
            for n in (1, 2)
        )
        yield [
            Program("notebook", "notebook", cache, needs="vector"),
            Program("embedded", "embedded", cache),
            Distributed("RabbitMQ, 1 + 1", alone),
            Distributed("RabbitMQ, 2 + 2", doubled),
            Program("coffea, local pool", "coffea", cache, needs="coffea"),
            Program("RDataFrame, all cores", "rdataframe", cache, needs="ROOT"),
        ]


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of every contestant (default: 5)")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="where the toy release is kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results.md")
    arguments = parser.parse_args()
    run = RunSettings(data=str(full_size_release(arguments.cache.resolve())))
    rounds: dict[str, list[Round]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        contestants(arguments.cache.resolve(), Path(folder)) as everyone,
    ):
        for number in range(arguments.rounds):
            for contestant in everyone:
                if contestant.missing:
                    continue
                measured = contestant.round(run)
                rounds.setdefault(contestant.name, []).append(measured)
                check(contestant.name, measured, rounds[everyone[0].name][0])
                print(f"round {number + 1}: {contestant.name}: {measured.seconds:.2f} s", flush=True)
        traffic: Mapping[str, float] = everyone[2].traffic(run) if isinstance(everyone[2], Distributed) else {}
    left_out = [f"{one.name}: {one.missing} is not installed" for one in everyone if one.missing]
    report(rounds, traffic, left_out, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
