"""The short set of faults, each sort once; ``python -m tests.chaos`` does the long one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import plan_of
from tests.chaos.deck import DECK
from tests.chaos.delivery_faults import ComeLate, Duplicate, Reorder, RepeatRequest
from tests.chaos.disk_faults import FillDisk, FullDisk
from tests.chaos.fault import Fault
from tests.chaos.line_faults import Alarm, Cut, CutHandshake, Delay, Hold, KillBroker, PowerCut, Refuse
from tests.chaos.play import Strike, Undisturbed, play, undisturbed_run
from tests.chaos.process_faults import Kill, KillAt, KillFit, Stop
from tests.chaos.stage import ERLANG, Stage, set_stage
from tests.support.broker import running_broker

OF_PROCESSES: list[Fault] = [
    Kill("data_loader"),
    KillAt("data_loader", point="after publish"),
    Stop("data_processor"),
    KillAt("data_processor", point="before acknowledge"),
    KillAt("analysis", point="after commit"),
    KillBroker(),
    PowerCut(),
    FullDisk("analysis", complaint="waits: the database"),
    KillFit(),
    FullDisk("visualisation", "drawing", "cannot be written"),
]
OF_MESSAGES: list[Fault] = [
    Cut(),
    Refuse(),
    CutHandshake(1),
    Delay(),
    Hold(),
    Alarm(),
    Duplicate("events"),
    Reorder("chunks"),
    ComeLate("selected"),
    RepeatRequest(late=True),
    KillAt("visualisation", "drawing", "before the folder is in place"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Undisturbed, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return undisturbed_run(cache), cache


@pytest.fixture(scope="module")
def stage(undisturbed: tuple[Undisturbed, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A broker and services of this module's own: they are to be killed."""
    with (
        running_broker(tmp_path_factory.mktemp("rabbitmq"), erlang=ERLANG) as broker,
        set_stage(broker, undisturbed[1], tmp_path_factory.mktemp("stage")) as stage,
    ):
        yield stage


@pytest.mark.broker
@pytest.mark.parametrize("faults", [OF_PROCESSES, OF_MESSAGES], ids=["of processes", "of messages"])
def test_a_run_with_faults_gives_the_numbers_of_a_run_without(
    stage: Stage, undisturbed: tuple[Undisturbed, Path], faults: list[Fault]
) -> None:
    strikes: list[Strike] = []
    assert play(stage, faults, undisturbed[0], random.Random(1), strikes.append) == []
    assert {strike.fault.name for strike in strikes} == {fault.name for fault in faults}


def test_the_short_suite_has_every_kind_of_fault_and_a_seed_repeats_the_plan() -> None:
    assert {type(fault) for fault in (*OF_PROCESSES, *OF_MESSAGES)} == {type(fault) for fault in DECK} - {FillDisk}
    plan = plan_of(DECK, 400, 8, seed=1)
    assert {fault.name for handful in plan for fault in handful} == {fault.name for fault in DECK}
    assert plan == plan_of(DECK, 400, 8, seed=1) != plan_of(DECK, 400, 8, seed=2)
