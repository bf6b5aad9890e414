"""Whole commands, as a person types them: seconds from the start of the process to the picture and to the exit.

Part of ``python -m benchmarks --commands``. Everything counts: the start of processes, imports, the fit, all figures
and files. The other implementations are scripts that draw one figure, that of the fitted histogram.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks.comparison import markdown, write
from benchmarks.stack import (
    DEMO,
    FULL_SIZE,
    RUN_DEADLINE_S,
    BenchmarkError,
    Stack,
    near_broker,
    toy_release,
    warm_stack,
)
from common.settings import BrokerSettings, RunSettings
from tests.support.paths import ROOT

#: How often it is checked whether the picture exists, in seconds.
CHECK_EVERY_S = 0.01
PICTURE = f"{DEMO.model.observable}.png"


@dataclass(frozen=True)
class Measured:
    """A command's seconds until its picture is on disk and until it ends, and CPU seconds of all its processes."""

    picture_s: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Command:
    """A command that writes a picture to a folder, or its subfolder.

    ``arguments`` gives the command for the folder, and ``variables`` the environment variables. ``missing`` names a
    package that it needs and that is not installed.
    """

    name: str
    arguments: Callable[[Path], Sequence[str | Path]]
    variables: Callable[[Path], Mapping[str, str]] = field(default=lambda folder: {})
    missing: str | None = None

    def measure(self) -> Measured:
        """Run the command; raises BenchmarkError if it fails, takes too long or has no picture."""
        with tempfile.TemporaryDirectory() as name, open(Path(name) / "log", "w+") as log:
            folder = Path(name) / "output"
            folder.mkdir()
            environment = os.environ | self.variables(Path(name))
            before, started = _cpu_seconds(), time.perf_counter()
            process = subprocess.Popen(  # noqa: S603  our own
                self.arguments(folder), cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            picture_s = None
            while process.poll() is None:
                if picture_s is None and _has_picture(folder):
                    picture_s = time.perf_counter() - started
                if time.perf_counter() - started > RUN_DEADLINE_S:
                    process.kill()
                time.sleep(CHECK_EVERY_S)
            seconds = time.perf_counter() - started
            if process.returncode or not _has_picture(folder):
                log.seek(0)
                raise BenchmarkError(f"{self.name} failed: {log.read().strip()[-500:]}")
            return Measured(picture_s or seconds, seconds, _cpu_seconds() - before)


@dataclass(frozen=True)
class Submission:
    """``analysis.py run --broker`` against services that are warm; they run only while it is measured."""

    name: str
    data: Path
    cache: Path
    missing: str | None = None

    def measure(self) -> Measured:
        """Start a broker and the services, and run the command; raises BenchmarkError as ``Command.measure``."""
        with (
            tempfile.TemporaryDirectory() as name,
            near_broker(Path(name)) as broker,
            warm_stack(broker, Path(name) / "services", self.cache) as stack,
        ):
            command = Command(self.name, lambda folder: self._arguments(folder, stack.vhost), lambda _: _login(stack))
            before = sum(stack.cpu_seconds().values())
            found = command.measure()
            cpu_seconds = found.cpu_seconds + sum(stack.cpu_seconds().values()) - before
            return replace(found, cpu_seconds=cpu_seconds)

    def _arguments(self, folder: Path, broker: BrokerSettings) -> Sequence[str | Path]:
        url = f"amqp://{broker.host}:{broker.port}/{broker.vhost}"
        return [sys.executable, "analysis.py", "run", "--broker", url, "--data", self.data, "--output", folder]


def _login(stack: Stack) -> Mapping[str, str]:
    return {"RABBITMQ_USER": stack.vhost.user, "RABBITMQ_PASS": stack.vhost.password}


def _has_picture(folder: Path) -> bool:
    """Whether a picture is in the folder or a subfolder, apart from temporary ones, which begin with a dot."""
    return any(folder.glob(PICTURE)) or any(folder.glob(f"[!.]*/{PICTURE}"))


def _cpu_seconds() -> float:
    """Return user and system seconds of all child processes that have ended, and of those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cold(folder: Path) -> Mapping[str, str]:
    """Return the environment of the first run after the installation: no compiled modules, no demo, no font cache."""
    caches = {"PYTHONPYCACHEPREFIX": "compiled", "MPLCONFIGDIR": "matplotlib", "CACHE": "cache"}
    return {name: str(folder / subfolder) for name, subfolder in caches.items()}


def local_run(name: str, *flags: str, variables: Callable[[Path], Mapping[str, str]]) -> Command:
    """Return ./local-run.sh with flags."""
    return Command(name, lambda folder: [ROOT / "local-run.sh", *flags, "--output", folder], variables)


def script(name: str, run: RunSettings, cache: Path, needs: str | None = None) -> Command:
    """Return an implementation as a script that draws its one plot."""
    settings = json.dumps({"release": run.release, "data": run.data, "demo_events": run.demo_events})
    module = f"benchmarks.implementations.{name.lower()}"
    return Command(
        name,
        lambda folder: [sys.executable, "-m", module, settings, cache, folder / PICTURE],
        missing=needs if needs and importlib.util.find_spec(needs) is None else None,
    )


def rows_of(measured: Mapping[str, Sequence[Measured]], missing: Mapping[str, str]) -> list[list[str]]:
    """Return a row for each command, compared with the first one: medians, and medians of the ratios of each round."""
    reference = next(iter(measured.values()))
    rows = [["", f"{PICTURE} s", "to notebook", "everything s", "to notebook", "CPU s", "to notebook"]]
    for name, rounds in measured.items():
        row = [name]
        for quantity in ("picture_s", "seconds", "cpu_seconds"):
            values, others = ([getattr(one, quantity) for one in of] for of in (rounds, reference))
            row += [f"{median(values):.2f}", f"{median(a / b for a, b in zip(values, others, strict=True)):.2f}"]
        rows.append(row)
    return rows + [[name, f"{package} is not installed", *[""] * 5] for name, package in missing.items()]


def main(rounds: int, cache: Path, output: Path) -> int:
    """Measure all commands in interleaved rounds, print and write the tables; returns the exit code."""
    data = toy_release(FULL_SIZE, cache, all_branches=True)
    demo, full = RunSettings(release="demo"), RunSettings(data=str(data))
    toy_release(demo.demo_events, cache)

    def warm(folder: Path) -> Mapping[str, str]:
        return {"CACHE": str(cache)}

    of_demo: list[Command | Submission] = [
        script("notebook", demo, cache),
        local_run("./local-run.sh --release demo", "--release", "demo", variables=warm),
        local_run("./local-run.sh --release demo, first time", "--release", "demo", variables=cold),
    ]
    of_full_size: list[Command | Submission] = [
        script("notebook", full, cache),
        local_run("./local-run.sh, full size", "--data", str(data), variables=warm),
        Submission("analysis.py run --broker, full size", data, cache),
        script("coffea", full, cache, needs="coffea"),
        script("RDataFrame", full, cache, needs="ROOT"),
    ]
    subprocess.run([ROOT / "local-run.sh", "--version"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603  installs
    tables = []
    for commands in (of_demo, of_full_size):
        measured: dict[str, list[Measured]] = {one.name: [] for one in commands if one.missing is None}
        for number in range(1, rounds + 1):
            for command in (one for one in commands if one.missing is None):
                measured[command.name].append(found := command.measure())
                print(
                    f"round {number}: {command.name}: {PICTURE} {found.picture_s:.2f} s, {found.seconds:.2f} s",
                    flush=True,
                )
        tables.append(rows_of(measured, {one.name: one.missing for one in commands if one.missing is not None}))
    write(
        output,
        [
            "# How long whole commands take",
            f"From the start of the process to {PICTURE} on the disk and to its exit, imports included; medians of "
            f"{rounds} interleaved rounds, ratios by round. The scripts of the notebook, coffea and RDataFrame draw "
            "it alone. RabbitMQ and the services run only for `--broker`. CPU seconds are those of all processes, also "
            "those of the services and RabbitMQ.",
            f"The demo of default size, {demo.demo_events:,} simulated events. The first time there are no compiled "
            "modules, no demo files and no font cache:",
            markdown(tables[0]),
            f"Files of the size and with the branches of the 2020 release, {FULL_SIZE:,} simulated events:",
            markdown(tables[1]),
        ],
    )
    return 0
