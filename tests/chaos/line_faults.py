"""Faults of the broker, and of the lines to it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from tests.chaos.fault import Fault, Moment
from tests.chaos.stage import SERVICES, Run, Stage
from tests.chaos.worker import HEARTBEAT_S
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class KillBroker(Fault):
    moment: Moment = "chunks"
    kind = "SIGKILL of the broker"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        stage.restart_broker()
        return True


@dataclass(frozen=True)
class PowerCut(Fault):
    moment: Moment = "chunks"
    kind = "SIGKILL of everything at once"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        for service in SERVICES:
            stage.workers.kill(service)
        stage.restart_broker()
        stage.workers.keep_up()
        return True


@dataclass(frozen=True)
class Cut(Fault):
    moment: Moment = "chunks"
    kind = "TCP: all connections reset"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        return stage.proxy.cut() > 0


class Refuse(Fault):
    kind = "TCP: refused for 3 s"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        stage.proxy.refuses = True
        stage.proxy.cut()
        time.sleep(3)
        stage.proxy.refuses = False
        return True


@dataclass(frozen=True)
class CutHandshake(Fault):
    """Every service loses its connection, and the next one after Connection.Start (1 piece) or Tune (2)."""

    pieces: int
    kind = "TCP: cut in the AMQP handshake"

    @property
    def name(self) -> str:
        return f"{self.kind}, after {'Start' if self.pieces == 1 else 'Tune'}"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        before, connections = stage.proxy.cuts, sum(stage.workers.replicas.values())
        stage.proxy.cut_new_after = self.pieces
        stage.proxy.cut()
        try:
            wait_until(lambda: stage.proxy.cuts >= before + connections, "every handshake was cut")
        finally:
            stage.proxy.cut_new_after = None
        return True


class Delay(Fault):
    kind = "TCP: every piece 0.1 s late, for 3 s"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        stage.proxy.delay_s = 0.1
        time.sleep(3)
        stage.proxy.delay_s = 0.0
        return True


class Hold(Fault):
    kind = "TCP: nothing through, beyond the heartbeat"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        stage.proxy.hold()
        time.sleep(3 * HEARTBEAT_S)
        stage.proxy.let_flow()
        return True


class Alarm(Fault):
    kind = "broker out of memory, blocks publishers"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        stage.broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        wait_until(lambda: stage.broker.api("GET", "nodes")[0]["mem_alarm"], "the broker raised its alarm")
        stage.broker.ctl("set_vm_memory_high_watermark", "0.6")
        return True
