"""Inject many faults into many runs: ``python -m tests.chaos --faults 200 --seed 1``."""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from tests.chaos import containers
from tests.chaos.catalogue import FAULTS
from tests.chaos.environment import ERLANG, Environment, open_environment
from tests.chaos.fault import Fault
from tests.chaos.scenario import InjectedFault, reference_run, run_scenario
from tests.support.broker import running_broker

REPLICAS = {"data_loader": 2, "data_processor": 2}


class Report:
    """Prints a line for each injected fault and each violation, and makes a table by kind of fault."""

    def __init__(self, wanted: int) -> None:
        self.injected: list[InjectedFault] = []
        self.violations: list[str] = []
        self._wanted = wanted

    def add(self, run: int, injected: InjectedFault) -> None:
        self.injected.append(injected)
        print(
            f"{len(self.injected):4d}/{self._wanted}  run {run:3d}  {injected.fault.name:62s} at {injected.at:4.0%}"
            f"  recovered after {injected.recovered_s:5.1f} s",
            flush=True,
        )

    def add_violations(self, run: int, problems: Sequence[str], logs: Path, repeat: str) -> None:
        for problem in problems:
            self.violations.append(problem)
            print(f"VIOLATION  run {run:3d}  {problem}\n          logs in {logs}; repeat with: {repeat}", flush=True)

    def table(self) -> str:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for injected in self.injected:
            by_kind[injected.fault.kind].append(injected.recovered_s)
        lines = [f"{'fault':44s} {'count':>5s} {'median s':>9s} {'max s':>7s}"]
        for kind, seconds in by_kind.items():
            lines.append(f"{kind:44s} {len(seconds):5d} {statistics.median(seconds):9.1f} {max(seconds):7.1f}")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many faults to inject")
    parser.add_argument("--seed", type=int, default=1, help="determines which faults are injected, and when")
    parser.add_argument("--per-run", type=int, default=8, help="how many faults a run gets")
    parser.add_argument("--first-run", type=int, default=0, help="leave out the runs before this one, to repeat it")
    parser.add_argument("--only", default="", help="only faults with this text in their name")
    parser.add_argument("--containers", action="store_true", help="use the Compose stack (images: IMAGE_TAG)")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # runs the clean-up
    logging.disable(logging.ERROR)  # the follower's connection is lost again and again
    report = Report(flags.faults)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    cache = folder / "cache"
    reference = reference_run(cache)
    faults = [fault for fault in (containers.FAULTS if flags.containers else FAULTS) if flags.only in fault.name]
    plan = plan_of(faults, flags.faults, flags.per_run, flags.seed)
    run = flags.first_run
    new_environment: Callable[..., AbstractContextManager[Environment]]
    with ExitStack() as stack:
        if flags.containers:
            new_environment = containers.open_environment
        else:
            broker = stack.enter_context(running_broker(folder, erlang=ERLANG))
            new_environment = partial(open_environment, broker, cache)
        while len(report.injected) < flags.faults and run < len(plan):
            logs = Path(tempfile.mkdtemp(prefix="environment-", dir=folder))
            with new_environment(logs, **REPLICAS) as environment:
                while len(report.injected) < flags.faults and run < len(plan):
                    number, rng = run, random.Random(f"{flags.seed}/{run}")
                    run += 1
                    on_injected = partial(report.add, number)
                    problems = run_scenario(environment, plan[number], reference, rng, on_injected)
                    if problems:  # the next run gets a new environment
                        containers_flag = " --containers" * flags.containers
                        repeat = f"python -m tests.chaos{containers_flag} --seed {flags.seed} --first-run {number}"
                        report.add_violations(number, problems, logs, f"{repeat} --faults {flags.per_run}")
                        break
    seconds = time.monotonic() - started
    print(f"\n{report.table()}\n")
    print(
        f"{len(report.injected)} faults in {run - flags.first_run} runs, {len(report.violations)} violations, "
        f"{seconds:.0f} s, seed {flags.seed}"
    )
    if report.violations:
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def plan_of(catalogue: Sequence[Fault], faults: int, per_run: int, seed: int) -> list[list[Fault]]:
    """The faults of each run: the catalogue in random order, again and again.

    The last fault of each run is of a phase after the chunks. There are twice
    as many runs as needed, because a fault whose phase is over is not injected.
    """
    rng = random.Random(seed)
    runs = 2 * (faults // per_run + 1)

    def shuffled(some: Sequence[Fault], number: int) -> list[Fault]:
        return [fault for _ in range(number // max(len(some), 1) + 1) for fault in rng.sample(some, len(some))]

    early = shuffled([fault for fault in catalogue if fault.phase == "chunks"], runs * per_run)
    late = shuffled([fault for fault in catalogue if fault.phase != "chunks"], runs)
    return [early[run * (per_run - 1) :][: per_run - 1] + late[run:][:1] for run in range(runs)]


if __name__ == "__main__":
    sys.exit(main())
