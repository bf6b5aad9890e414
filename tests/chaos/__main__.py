"""The long set: ``python -m tests.chaos --faults 200 --seed 1``."""

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
from tests.chaos.deck import DECK
from tests.chaos.fault import Fault
from tests.chaos.play import Strike, play, undisturbed_run
from tests.chaos.stage import ERLANG, Stage, set_stage
from tests.support.broker import running_broker

REPLICAS = {"data_loader": 2, "data_processor": 2}


class Protocol:
    """What has struck so far: a line for each, and in the end a table by kind."""

    def __init__(self, wanted: int) -> None:
        self.strikes: list[Strike] = []
        self.violated: list[str] = []
        self._wanted = wanted

    def add(self, run: int, strike: Strike) -> None:
        self.strikes.append(strike)
        print(
            f"{len(self.strikes):4d}/{self._wanted}  run {run:3d}  {strike.fault.name:62s} at {strike.at:4.0%}"
            f"  went on after {strike.recovered_s:5.1f} s",
            flush=True,
        )

    def violate(self, run: int, problems: Sequence[str], kept: Path, repeat: str) -> None:
        for problem in problems:
            self.violated.append(problem)
            print(f"VIOLATED  run {run:3d}  {problem}\n          logs in {kept}; again: {repeat}", flush=True)

    def table(self) -> str:
        by_kind: dict[str, list[float]] = defaultdict(list)
        for strike in self.strikes:
            by_kind[strike.fault.kind].append(strike.recovered_s)
        lines = [f"{'fault':44s} {'count':>5s} {'median s':>9s} {'max s':>7s}"]
        for kind, seconds in by_kind.items():
            lines.append(f"{kind:44s} {len(seconds):5d} {statistics.median(seconds):9.1f} {max(seconds):7.1f}")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many faults are to strike")
    parser.add_argument("--seed", type=int, default=1, help="what decides which faults strike, and when")
    parser.add_argument("--per-run", type=int, default=8, help="faults of one run")
    parser.add_argument("--first-run", type=int, default=0, help="leave out the runs before, to see one again")
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument("--containers", action="store_true", help="disturb the Compose stack (images: IMAGE_TAG)")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # and take down what runs
    logging.disable(logging.ERROR)  # that our own connections break is no news
    protocol = Protocol(asked.faults)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    cache = folder / "cache"
    undisturbed = undisturbed_run(cache)
    deck = [fault for fault in (containers.DECK if asked.containers else DECK) if asked.only in fault.name]
    plan = plan_of(deck, asked.faults, asked.per_run, asked.seed)
    run = asked.first_run
    new_stage: Callable[..., AbstractContextManager[Stage]]
    with ExitStack() as held:
        if asked.containers:
            new_stage = containers.set_stage
        else:
            new_stage = partial(set_stage, held.enter_context(running_broker(folder, erlang=ERLANG)), cache)
        while len(protocol.strikes) < asked.faults and run < len(plan):
            stage_folder = Path(tempfile.mkdtemp(prefix="stage-", dir=folder))
            with new_stage(stage_folder, **REPLICAS) as stage:
                while len(protocol.strikes) < asked.faults and run < len(plan):
                    number, rng = run, random.Random(f"{asked.seed}/{run}")
                    run += 1
                    problems = play(stage, plan[number], undisturbed, rng, lambda s: protocol.add(number, s))  # noqa: B023
                    if problems:  # what comes after it is to start clean
                        flags = " --containers" * asked.containers
                        again = f"python -m tests.chaos{flags} --seed {asked.seed} --first-run {number}"
                        protocol.violate(number, problems, stage_folder, f"{again} --faults {asked.per_run}")
                        break
    seconds = time.monotonic() - begun
    print(f"\n{protocol.table()}\n")
    print(
        f"{len(protocol.strikes)} faults in {run - asked.first_run} runs, {len(protocol.violated)} violations, "
        f"{seconds:.0f} s, seed {asked.seed}"
    )
    if protocol.violated:
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def plan_of(deck: Sequence[Fault], faults: int, per_run: int, seed: int) -> list[list[Fault]]:
    """Which faults each run is to suffer: the deck, shuffled again and again, dealt a handful a run.

    One of a run's faults strikes after its last chunk. Twice as many runs as
    are needed, as not every fault finds its moment.
    """
    rng = random.Random(seed)
    runs = 2 * (faults // per_run + 1)

    def deal(some: Sequence[Fault], number: int) -> list[Fault]:
        return [fault for _ in range(number // max(len(some), 1) + 1) for fault in rng.sample(some, len(some))]

    early = deal([fault for fault in deck if fault.moment == "chunks"], runs * per_run)
    late = deal([fault for fault in deck if fault.moment != "chunks"], runs)
    return [early[run * (per_run - 1) :][: per_run - 1] + late[run:][:1] for run in range(runs)]


if __name__ == "__main__":
    sys.exit(main())
