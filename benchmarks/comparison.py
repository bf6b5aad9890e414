"""The implementations that are compared, their measurements, and the tables and files of the results."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.stack import BenchmarkError, Stack, broker_version
from common.settings import RunSettings
from tests.support.paths import ROOT

_PACKAGES = ("uproot", "awkward", "numpy", "pika", "pyhf", "vector", "coffea", "root")


@dataclass(frozen=True)
class Round:
    """One run: seconds, CPU seconds by process, and for each sample the events selected and their sum of weights."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    samples: Mapping[str, Mapping[str, Any]]

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.cpu_seconds.values())


class Implementation(ABC):
    """An implementation of the analysis; ``missing`` names a package that it needs and that is not installed."""

    missing: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def round(self, run: RunSettings) -> Round:
        """Do the run once and measure it."""


class Program(Implementation):
    """An implementation that runs in a new process for each round."""

    def __init__(self, name: str, module: str, cache: Path, needs: str = "") -> None:
        super().__init__(name)
        self.missing = needs if needs and importlib.util.find_spec(needs) is None else None
        self._command = [sys.executable, "-m", f"benchmarks.implementations.{module}"]
        self._cache = cache

    def round(self, run: RunSettings) -> Round:
        """Run the program and read the measurement that it prints."""
        settings = {"release": run.release, "data": run.data, "demo_events": run.demo_events, "plots": run.plots}
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


def check(name: str, measured: Round, reference: Round) -> None:
    """Raise BenchmarkError unless the same events were selected with the same weights, up to float32 rounding."""
    if measured.samples.keys() != reference.samples.keys() or not reference.samples:
        raise BenchmarkError(f"{name} analysed {sorted(measured.samples)}, the notebook {sorted(reference.samples)}")
    for sample, wanted in reference.samples.items():
        found = measured.samples[sample]
        same = math.isclose(found["sum_of_weights"], wanted["sum_of_weights"], rel_tol=1e-5)
        if found["events_selected"] != wanted["events_selected"] or not same:
            raise BenchmarkError(f"{name}: {sample} has {found}, not {wanted}")


def table(rounds: Mapping[str, Sequence[Round]], events: int) -> list[list[str]]:
    """Return a row for each implementation, compared with the first one.

    A ratio is the median of the ratios of each round, because a slow machine slows all implementations of a round.
    """
    reference = next(iter(rounds.values()))
    rows = [["", "wall s", "to notebook", "CPU s", "to notebook", "million events/s"]]
    for name, measured in rounds.items():
        seconds = median(one.seconds for one in measured)
        wall_ratios, cpu_ratios = (
            [getattr(one, quantity) / getattr(other, quantity) for one, other in zip(measured, reference, strict=True)]
            for quantity in ("seconds", "cpu")
        )
        rows.append(
            [
                name,
                f"{seconds:.2f}",
                f"{median(wall_ratios):.2f} ({min(wall_ratios):.2f} to {max(wall_ratios):.2f})",
                f"{median(one.cpu for one in measured):.2f}",
                f"{median(cpu_ratios):.2f}",
                f"{events / seconds / 1e6:.2f}",
            ]
        )
    return rows


def by_service(rounds: Mapping[str, Sequence[Round]]) -> list[list[str]]:
    """Return the median CPU seconds by service, a row for each implementation that has services."""
    distributed = {name: found for name, found in rounds.items() if len(found[0].cpu_seconds) > 1}
    services = list(next(iter(distributed.values()))[0].cpu_seconds)
    rows = [["CPU s", *services]]
    for name, found in distributed.items():
        rows.append([name, *(f"{median(one.cpu_seconds[service] for one in found):.2f}" for service in services)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its header."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def write(output: Path, paragraphs: Sequence[str]) -> None:
    """Print the paragraphs and a description of the machine, and write them to a file."""
    text = "\n\n".join([*paragraphs, machine()])
    print(text)
    output.write_text(f"{text}\n")


def machine() -> str:
    """Return a sentence with the date, the commit, the machine and the versions of RabbitMQ and of packages."""
    packages = [f"RabbitMQ {broker_version()}"]
    for package in _PACKAGES:
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, {psutil.cpu_count()} cores "
        f"({_processor()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {', '.join(packages)}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
