"""One run and the faults in it: when they strike, how long until it goes on, and what must hold in the end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from common.settings import RunSettings
from tests.chaos.fault import Fault, Moment
from tests.chaos.invariants import violations
from tests.chaos.stage import HeldFit, Run, Stage
from tests.support.runs import numbers, run_embedded

#: Long enough to have a middle: 13 samples in about 300 chunks.
DEMO = RunSettings(release="demo", demo_events=120_000, chunk_entries=400)

_ORDER: tuple[Moment, ...] = ("chunks", "fit", "drawing")


@dataclass(frozen=True)
class Strike:
    """A fault that struck, ``at`` that fraction of the run's entries, and the seconds until the run went on."""

    fault: Fault
    at: float
    recovered_s: float


@dataclass(frozen=True)
class Undisturbed:
    """What the embedded run gives: its numbers, and how many entries it reads."""

    numbers: str
    entries: int


def undisturbed_run(cache: Path) -> Undisturbed:
    """Do the run embedded, with nothing done to it."""
    outcome = run_embedded(DEMO, cache)
    assert outcome.result is not None
    entries = sum(sample["events_read"] for sample in outcome.result["samples"].values())
    return Undisturbed(numbers(outcome), entries)


def play(
    stage: Stage,
    faults: Sequence[Fault],
    undisturbed: Undisturbed,
    rng: random.Random,
    on_strike: Callable[[Strike], None] = lambda strike: None,
) -> list[str]:
    """Do a run, and let the faults strike it one after the other; returns the violated invariants.

    Those among the chunks strike at random fractions of the entries. A fault
    that finds the run over has not struck, and is not told.
    """
    among_chunks = [fault for fault in faults if fault.moment == "chunks"]
    fractions = sorted(rng.uniform(0.02, 0.75) for _ in among_chunks)
    run, fit = stage.run(DEMO), HeldFit(stage)
    try:
        for fault in sorted(faults, key=lambda fault: _ORDER.index(fault.moment)):
            after = fractions.pop(0) * undisturbed.entries if fault.moment == "chunks" else 0
            time_is_come = partial(_is_time, fault.moment, run, fit, after, undisturbed.entries)
            if not run.wait_for(lambda: time_is_come() or stage.workers.has_lost()):  # noqa: B023
                break
            strike = _strike(stage, run, fit, fault, undisturbed, rng)
            if strike is not None:
                on_strike(strike)
        if run.wait_for(stage.workers.has_lost):
            run.give_up()  # a service ended unasked: nothing is to come
        run.outcome.result()
        while stage.afterwards:
            stage.afterwards.pop()()
        return violations(stage, run, undisturbed.numbers)
    except pytest.fail.Exception as vain:
        return [str(vain)]
    finally:
        fit.let_go()
        run.close()


def _is_time(moment: Moment, run: Run, fit: HeldFit, after: float, entries: int) -> bool:
    """Whether a moment has come, or is over."""
    match moment:
        case "chunks":
            return run.done() > after
        case "fit":
            fit.hold()  # before the last chunk: later, it could be over
            return run.done() >= entries or run.is_drawing()
        case "drawing":
            return run.is_drawing()


def _strike(
    stage: Stage, run: Run, fit: HeldFit, fault: Fault, undisturbed: Undisturbed, rng: random.Random
) -> Strike | None:
    at, begun = run.done() / undisturbed.entries, time.monotonic()
    in_its_moment = not (fault.moment == "fit" and run.is_drawing())
    has_struck = in_its_moment and fault.inflict(stage, run, rng)
    fit.let_go()
    if not has_struck:
        return None
    done = run.done(fault.felt_by)

    def goes_on() -> bool:
        return run.is_drawing() if fault.moment == "fit" else run.done(fault.felt_by) > done

    run.wait_for(lambda: goes_on() or stage.workers.has_lost())
    return Strike(fault, at, time.monotonic() - begun)
