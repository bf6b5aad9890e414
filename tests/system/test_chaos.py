"""Runs with one fault of every kind; ``python -m tests.chaos`` injects many more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import plan_of
from tests.chaos.catalogue import FAULTS
from tests.chaos.delivery_faults import Duplicate, RedeliverAfterRun, Reorder, RepeatRequest
from tests.chaos.disk_faults import FillDisk, FullDisk
from tests.chaos.environment import ERLANG, Environment, open_environment
from tests.chaos.fault import Fault
from tests.chaos.network_faults import Cut, CutHandshake, Delay, Hold, KillBroker, MemoryAlarm, PowerCut, Refuse
from tests.chaos.process_faults import Kill, KillAt, KillFit, Stop
from tests.chaos.scenario import InjectedFault, Reference, reference_run, run_scenario
from tests.support.broker import running_broker

PROCESS_FAULTS: list[Fault] = [
    Kill("data_loader"),
    KillAt("data_loader", point="after publish"),
    Stop("data_processor"),
    KillAt("data_processor", point="before acknowledge"),
    KillAt("analysis", point="after commit"),
    KillBroker(),
    PowerCut(),
    FullDisk("analysis", log_text="waits: the database"),
    KillFit(),
    FullDisk("visualisation", "drawing", "cannot be written"),
]
MESSAGE_FAULTS: list[Fault] = [
    Cut(),
    Refuse(),
    CutHandshake(1),
    Delay(),
    Hold(),
    MemoryAlarm(),
    Duplicate("events"),
    Reorder("chunks"),
    RedeliverAfterRun("selected"),
    RepeatRequest(late=True),
    KillAt("visualisation", "drawing", "before the folder is in place"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return reference_run(cache), cache


@pytest.fixture(scope="module")
def environment(reference: tuple[Reference, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A broker and services for this module only, because they are killed."""
    with (
        running_broker(tmp_path_factory.mktemp("rabbitmq"), erlang=ERLANG) as broker,
        open_environment(broker, reference[1], tmp_path_factory.mktemp("environment")) as started,
    ):
        yield started


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("faults", [PROCESS_FAULTS, MESSAGE_FAULTS], ids=["processes", "messages"])
def test_a_run_with_faults_gives_the_numbers_of_a_run_without(
    environment: Environment, reference: tuple[Reference, Path], faults: list[Fault]
) -> None:
    injected: list[InjectedFault] = []
    assert run_scenario(environment, faults, reference[0], random.Random(1), injected.append) == []
    assert {fault.fault.name for fault in injected} == {fault.name for fault in faults}


def test_the_short_suite_has_every_kind_of_fault_and_a_seed_repeats_the_plan() -> None:
    short = {type(fault) for fault in (*PROCESS_FAULTS, *MESSAGE_FAULTS)}
    assert short == {type(fault) for fault in FAULTS} - {FillDisk}  # which needs root
    plan = plan_of(FAULTS, 400, 8, seed=1)
    assert {fault.name for faults in plan for fault in faults} == {fault.name for fault in FAULTS}
    assert plan == plan_of(FAULTS, 400, 8, seed=1) != plan_of(FAULTS, 400, 8, seed=2)
