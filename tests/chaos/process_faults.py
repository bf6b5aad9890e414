"""Faults of the services' processes: killed, stopped for a while, killed at a named point."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

from tests.chaos.fault import Fault, Moment, OfService
from tests.chaos.stage import Run, Stage
from tests.support.waiting import wait_until


class Kill(OfService):
    kind = "SIGKILL"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        process = rng.choice(stage.workers.running(self.service))
        process.kill()
        process.wait()
        stage.workers.keep_up()
        return True


class Stop(OfService):
    kind = "SIGSTOP beyond the heartbeat"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        process = rng.choice(stage.workers.running(self.service))
        ports: set[int] = wait_until(lambda: stage.proxied_ports(process), f"{self.service} is connected")
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: not ports & stage.proxy.client_ports(), "the broker gave the stopped service up")
        finally:
            process.send_signal(signal.SIGCONT)
        return True


@dataclass(frozen=True)
class KillAt(OfService):
    """SIGKILL at a named point of tests/chaos/worker.py."""

    point: str = ""

    @property
    def kind(self) -> str:
        return f"SIGKILL {self.point}"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        order = stage.workers.order(self.service)
        # The visualisation passes most points once a run, the others many times.
        passages = 1 if self.service == "visualisation" else rng.randint(1, 5)
        running = len(stage.workers.running(self.service))
        new = order.with_suffix(".new")
        new.write_text(f"{self.point}:{passages}")
        new.rename(order)
        run.wait_for(lambda: not order.exists())
        try:
            order.unlink()
        except FileNotFoundError:
            wait_until(lambda: len(stage.workers.running(self.service)) < running, f"{self.service} has died")
            stage.workers.keep_up()
            return True
        return False


class KillFit(Fault):
    kind = "SIGKILL of the fit alone"
    moment: Moment = "fit"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        process = stage.workers.fitter()
        if process is not None:
            process.kill()
        return process is not None
