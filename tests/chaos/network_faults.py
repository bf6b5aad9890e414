"""Faults of the broker, and of the connections to it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from tests.chaos.environment import SERVICES, Environment, FollowedRun
from tests.chaos.fault import Fault, Phase
from tests.chaos.service_process import HEARTBEAT_S
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class KillBroker(Fault):
    phase: Phase = "chunks"
    kind = "SIGKILL of the broker"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        environment.restart_broker()
        return True


@dataclass(frozen=True)
class PowerCut(Fault):
    phase: Phase = "chunks"
    kind = "SIGKILL of everything at once"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        for service in SERVICES:
            environment.workers.kill(service)
        environment.restart_broker()
        environment.workers.start_missing()
        return True


@dataclass(frozen=True)
class Cut(Fault):
    phase: Phase = "chunks"
    kind = "TCP: all connections reset"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        return environment.proxy.cut() > 0


class Refuse(Fault):
    kind = "TCP: refused for 3 s"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        environment.proxy.refuses = True
        environment.proxy.cut()
        time.sleep(3)
        environment.proxy.refuses = False
        return True


@dataclass(frozen=True)
class CutHandshake(Fault):
    """Every service loses its connection, and the next one after Connection.Start (1 piece) or Tune (2)."""

    pieces: int
    kind = "TCP: cut in the AMQP handshake"

    @property
    def name(self) -> str:
        return f"{self.kind}, after {'Start' if self.pieces == 1 else 'Tune'}"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        before, connections = environment.proxy.cuts, sum(environment.workers.replicas.values())
        environment.proxy.cut_new_after = self.pieces
        environment.proxy.cut()
        try:
            wait_until(lambda: environment.proxy.cuts >= before + connections, "every handshake was cut")
        finally:
            environment.proxy.cut_new_after = None
        return True


class Delay(Fault):
    kind = "TCP: every piece 0.1 s late, for 3 s"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        environment.proxy.delay_s = 0.1
        time.sleep(3)
        environment.proxy.delay_s = 0.0
        return True


class Hold(Fault):
    kind = "TCP: nothing forwarded, beyond the heartbeat"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        environment.proxy.hold()
        time.sleep(3 * HEARTBEAT_S)
        environment.proxy.release()
        return True


class MemoryAlarm(Fault):
    kind = "broker out of memory, blocks publishers"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        environment.broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        wait_until(lambda: environment.broker.api("GET", "nodes")[0]["mem_alarm"], "the broker raised its alarm")
        environment.broker.ctl("set_vm_memory_high_watermark", "0.6")
        return True
