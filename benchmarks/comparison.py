"""Implementations, their rounds, and the table of what they took."""

from __future__ import annotations

import math
import platform
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.stack import BenchmarkError
from common.settings import RunSettings

_PACKAGES = ("uproot", "awkward", "numpy", "pika", "pyhf", "vector", "coffea", "root")


@dataclass(frozen=True)
class Round:
    """One run: seconds, CPU seconds by process, and by sample what was selected and its sum of weights."""

    seconds: float
    cpu_seconds: Mapping[str, float]
    samples: Mapping[str, Mapping[str, Any]]

    @property
    def cpu(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.cpu_seconds.values())


class Implementation(ABC):
    """One way to do the analysis; ``missing`` names the package it would need."""

    missing: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def round(self, run: RunSettings) -> Round:
        """Do the run once."""


def check(name: str, measured: Round, reference: Round) -> None:
    """Raise BenchmarkError unless the same events were selected, with the same weights but for float32's rounding."""
    for sample, wanted in reference.samples.items():
        found = measured.samples[sample]
        same = math.isclose(found["sum_of_weights"], wanted["sum_of_weights"], rel_tol=1e-5)
        if found["events_selected"] != wanted["events_selected"] or not same:
            raise BenchmarkError(f"{name}: {sample} has {found}, not {wanted}")


def table(rounds: Mapping[str, Sequence[Round]], events: int) -> list[list[str]]:
    """Rows of the implementations, the first of which is what the others are compared with.

    Ratios are the medians of the rounds' own ratios: what slows the machine in a round slows all.
    """
    reference = next(iter(rounds.values()))
    rows = [["", "wall s", "to notebook", "CPU s", "to notebook", "million events/s"]]
    for name, measured in rounds.items():
        seconds = median(one.seconds for one in measured)
        wall_ratios, cpu_ratios = (
            [getattr(one, of) / getattr(other, of) for one, other in zip(measured, reference, strict=True)]
            for of in ("seconds", "cpu")
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
    """Rows of the CPU seconds by service, medians over the rounds, of the implementations that have services."""
    distributed = {name: found for name, found in rounds.items() if len(found[0].cpu_seconds) > 1}
    services = list(next(iter(distributed.values()))[0].cpu_seconds)
    rows = [["CPU s", *services]]
    for name, found in distributed.items():
        rows.append([name, *(f"{median(one.cpu_seconds[service] for one in found):.2f}" for service in services)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; its first row is the head."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def write(output: Path, paragraphs: Sequence[str]) -> None:
    """Print what was measured and keep it in a file, with what it was measured on."""
    text = "\n\n".join([*paragraphs, machine()])
    print(text)
    output.write_text(f"{text}\n")


def machine() -> str:
    """What was measured on, and with, in a sentence."""
    packages = []
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
        f"({_processor()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {', '.join(packages)}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
