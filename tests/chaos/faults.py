"""The faults: each a small class with a name and ``inflict``; DECK holds one of every sort."""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pika
import psutil

from tests.chaos.redelivery import Taken, channel_of, disturb, put
from tests.chaos.stage import SERVICES, Run, Stage
from tests.chaos.worker import HEARTBEAT_S, OF_EVERY_SERVICE, OF_THE_ANALYSIS, OF_THE_VISUALISATION
from tests.conftest import wait_until

#: When in a run: while chunks are under way, while the fit is, or while the plots are drawn.
Moment = Literal["chunks", "fit", "drawing"]


class Fault(ABC):
    """Something that goes wrong. ``kind`` is what it is counted under."""

    moment: Moment = "chunks"
    #: The service whose next progress shows that the fault is over, as progress names it.
    felt_by: str = "analysis"

    kind: str

    @property
    def name(self) -> str:
        return self.kind

    @abstractmethod
    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        """Let it happen, and make good what a person would; False where the run was over before."""


@dataclass(frozen=True)
class OfService(Fault):
    """A fault of one service."""

    service: str
    moment: Moment = "chunks"

    @property
    def felt_by(self) -> str:
        return "analysis" if self.service == "visualisation" else self.service.replace("_", "-")

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.service}" + ("" if self.moment == "chunks" else f" ({self.moment})")


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
        return run.wait_for(lambda: _kill_all(fits_under_way(stage)))


def _kill_all(processes: list[psutil.Process]) -> bool:
    for process in processes:
        process.kill()
    return bool(processes)


def fits_under_way(stage: Stage) -> list[psutil.Process]:
    """The processes that the analysis has started."""
    found = []
    for process in stage.workers.running("analysis"):
        try:
            found += psutil.Process(process.pid).children()
        except psutil.NoSuchProcess:
            continue
    return found


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


@dataclass(frozen=True)
class OfQueue(Fault):
    """A fault of one queue's deliveries, for two seconds."""

    queue: str

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.queue}"


class Duplicate(OfQueue):
    kind = "deliveries come three times, shuffled"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        return bool(disturb(stage.vhost, self.queue, 2.0, 3, rng))


class Reorder(OfQueue):
    kind = "deliveries come in another order"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        return bool(disturb(stage.vhost, self.queue, 2.0, 1, rng))


class ComeLate(OfQueue):
    kind = "deliveries come again after the run"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        taken = disturb(stage.vhost, self.queue, 2.0, 1, rng)
        stage.afterwards.append(lambda: _put_all(stage, taken))
        return bool(taken)


@dataclass(frozen=True)
class RepeatRequest(Fault):
    """The run's own request comes a second time: while it is under way, or after it."""

    late: bool
    kind = "the run's request comes again"

    @property
    def name(self) -> str:
        return f"{self.kind}, {'after' if self.late else 'in'} the run"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        request = run.request
        properties = pika.BasicProperties(type=request.kind, delivery_mode=2, headers=request.headers)
        again = [Taken(request.route, properties, request.encode())]
        if self.late:
            stage.afterwards.append(lambda: _put_all(stage, again))
        else:
            _put_all(stage, again)
        return True


def _put_all(stage: Stage, messages: list[Taken]) -> None:
    with channel_of(stage.vhost) as channel:
        for message in messages:
            put(channel, message)


@dataclass(frozen=True)
class FullDisk(OfService):
    """No file of the service can grow, until it has said that it waits."""

    complaint: str = ""

    @property
    def kind(self) -> str:
        return f"disk full: {self.service}"

    @property
    def name(self) -> str:
        return self.kind

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        log = stage.workers.folder / f"{self.service}.log"
        limit = log.stat().st_size + 32 * 1024  # the log itself needs some room
        complained = news_in(log, self.complaint)
        with stage.file_size_limit(self.service, limit):
            return run.wait_for(complained)


class FillDisk(Fault):
    """The database's file system is filled to the last byte, where it is one of its own (made by root)."""

    kind = "file system full: analysis"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        if not stage.workers.database.is_mount():
            return False
        complained = news_in(stage.workers.folder / "analysis.log", "waits: the database")
        ballast = stage.workers.database / "ballast"
        try:
            with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            return run.wait_for(complained)
        finally:
            ballast.unlink()


def news_in(log: Path, text: str) -> Callable[[], bool]:
    """Whether a text has come into a log since now."""
    size = log.stat().st_size

    def has_come() -> bool:
        with open(log, "rb") as file:
            file.seek(size)
            return text.encode() in file.read()

    return has_come


def _deck() -> list[Fault]:
    points: list[Fault] = [KillAt(service, point=point) for service in SERVICES[:-1] for point in OF_EVERY_SERVICE]
    points += [KillAt("analysis", point=point) for point in OF_THE_ANALYSIS]
    # Nothing comes of the chunks' news there: it publishes folders only.
    points += [KillAt("visualisation", "drawing", point) for point in (*OF_EVERY_SERVICE, *OF_THE_VISUALISATION)]
    kills: list[Fault] = [*(Kill(service) for service in SERVICES), Kill("analysis", "fit"), KillFit()]
    kills += [Kill("visualisation", "drawing"), KillBroker(), KillBroker("fit"), KillBroker("drawing")]
    kills += [PowerCut(), PowerCut("fit"), PowerCut("drawing")]
    stops: list[Fault] = [*(Stop(service) for service in SERVICES), Stop("analysis", "fit")]
    stops.append(Stop("visualisation", "drawing"))
    lines: list[Fault] = [Cut(), Cut("drawing"), Refuse(), CutHandshake(1), CutHandshake(2), Delay(), Hold(), Alarm()]
    queues: list[Fault] = [RepeatRequest(late=False), RepeatRequest(late=True)]
    sorts: tuple[Callable[[str], Fault], ...] = (Duplicate, Reorder, ComeLate)
    queues += [of(queue) for queue in ("chunks", "events", "selected", "results.visualisation") for of in sorts]
    disks: list[Fault] = [
        FullDisk("analysis", complaint="waits: the database"),
        FullDisk("visualisation", "drawing", "cannot be written"),
        FillDisk(),
    ]
    return [*points, *kills, *stops, *lines, *queues, *disks]


#: One fault of every sort.
DECK: tuple[Fault, ...] = tuple(_deck())
