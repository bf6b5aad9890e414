"""One run and the faults in it: when each is injected, how long the recovery takes, and what is violated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from common.settings import RunSettings
from tests.chaos.environment import Environment, FollowedRun, HeldFit
from tests.chaos.fault import Fault, Phase
from tests.chaos.invariants import violations
from tests.support.runs import numbers, run_embedded

#: 13 samples in about 300 chunks: long enough for eight faults.
DEMO = RunSettings(release="demo", demo_events=80_000, chunk_entries=400)

_ORDER: tuple[Phase, ...] = ("chunks", "fit", "drawing")


@dataclass(frozen=True)
class InjectedFault:
    """A fault that was injected when the fraction ``at`` of the entries was analysed, and the seconds to recover."""

    fault: Fault
    at: float
    recovered_s: float


@dataclass(frozen=True)
class Reference:
    """The numbers of the embedded run without faults, and how many entries it reads."""

    numbers: str
    entries: int


def reference_run(cache: Path) -> Reference:
    """Do the run embedded, without faults."""
    outcome = run_embedded(DEMO, cache)
    assert outcome.result is not None
    entries = sum(sample["events_read"] for sample in outcome.result["samples"].values())
    return Reference(numbers(outcome), entries)


def run_scenario(
    environment: Environment,
    faults: Sequence[Fault],
    reference: Reference,
    rng: random.Random,
    on_injected: Callable[[InjectedFault], None] = lambda injected: None,
) -> list[str]:
    """Do a run, inject the faults one after the other, and return the violated invariants.

    Faults of the phase ``chunks`` are injected at random fractions of the
    entries. A fault whose phase is over is not injected, nor reported.
    """
    among_chunks = [fault for fault in faults if fault.phase == "chunks"]
    fractions = sorted(rng.uniform(0.02, 0.75) for _ in among_chunks)
    run, fit = environment.run(DEMO), HeldFit(environment)
    try:
        for fault in sorted(faults, key=lambda fault: _ORDER.index(fault.phase)):
            after = fractions.pop(0) * reference.entries if fault.phase == "chunks" else 0
            is_due = partial(_is_due, fault.phase, run, fit, after, reference.entries)
            if not run.wait_for(lambda: is_due() or environment.workers.has_ended()):  # noqa: B023
                break
            injected = _inject(environment, run, fit, fault, reference, rng)
            if injected is not None:
                on_injected(injected)
        if run.wait_for(environment.workers.has_ended):
            run.stop()  # a service exited without a fault, so the run cannot end
        run.outcome.result()
        while environment.after_run:
            environment.after_run.pop()()
        return violations(environment, run, reference.numbers)
    except pytest.fail.Exception as timeout:
        return [str(timeout)]
    finally:
        fit.release()
        run.close()


def _is_due(phase: Phase, run: FollowedRun, fit: HeldFit, after: float, entries: int) -> bool:
    """Whether a phase, and in it the entry ``after``, is reached or over."""
    match phase:
        case "chunks":
            return run.done() > after
        case "fit":
            fit.hold()  # before the last chunk: after it, the fit could be done at once
            return run.done() >= entries or run.is_drawing()
        case "drawing":
            return run.is_drawing()


def _inject(
    environment: Environment, run: FollowedRun, fit: HeldFit, fault: Fault, reference: Reference, rng: random.Random
) -> InjectedFault | None:
    at, started = run.done() / reference.entries, time.monotonic()
    is_over = fault.phase == "fit" and run.is_drawing()
    was_injected = not is_over and fault.inject(environment, run, rng)
    fit.release()
    if not was_injected:
        return None
    done = run.done(fault.affects)

    def has_recovered() -> bool:
        return run.is_drawing() if fault.phase == "fit" else run.done(fault.affects) > done

    run.wait_for(lambda: has_recovered() or environment.workers.has_ended())
    return InjectedFault(fault, at, time.monotonic() - started)
