"""Faults of the services' processes: killed, stopped for a while, killed at a named point."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

from tests.chaos.environment import Environment, FollowedRun
from tests.chaos.fault import Fault, Phase, ServiceFault
from tests.support.waiting import wait_until


class Kill(ServiceFault):
    kind = "SIGKILL"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        process = rng.choice(environment.workers.running(self.service))
        process.kill()
        process.wait()
        environment.workers.start_missing()
        return True


class Stop(ServiceFault):
    kind = "SIGSTOP beyond the heartbeat"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        process = rng.choice(environment.workers.running(self.service))
        ports: set[int] = wait_until(lambda: environment.proxied_ports(process), f"{self.service} was connected")
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: not ports & environment.proxy.client_ports(), "the broker closed the connection")
        finally:
            process.send_signal(signal.SIGCONT)
        return True


@dataclass(frozen=True)
class KillAt(ServiceFault):
    """SIGKILL at a named point of tests/chaos/service_process.py."""

    point: str = ""

    @property
    def kind(self) -> str:
        return f"SIGKILL {self.point}"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        order = environment.workers.kill_order(self.service)
        # The visualisation passes most points once in a run, the others many times.
        passages = 1 if self.service == "visualisation" else rng.randint(1, 5)
        running = len(environment.workers.running(self.service))
        new = order.with_suffix(".new")
        new.write_text(f"{self.point}:{passages}")
        new.rename(order)
        run.wait_for(lambda: not order.exists())
        try:
            order.unlink()
        except FileNotFoundError:
            wait_until(lambda: len(environment.workers.running(self.service)) < running, f"{self.service} has ended")
            environment.workers.start_missing()
            return True
        return False


class KillFit(Fault):
    kind = "SIGKILL of the process for fits"
    phase: Phase = "fit"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        process = environment.workers.fit_process()
        if process is not None:
            process.kill()
        return process is not None
