"""Faults of deliveries: twice, late, in another order."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pika

from tests.chaos.fault import Fault
from tests.chaos.redelivery import Taken, channel_of, disturb, put
from tests.chaos.stage import Run, Stage


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
