"""Faults of deliveries: duplicated, reordered, or after the run."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pika

from tests.chaos.environment import Environment, FollowedRun
from tests.chaos.fault import Fault
from tests.chaos.redelivery import Taken, open_channel, put, redeliver

DURATION_S = 2.0


@dataclass(frozen=True)
class QueueFault(Fault):
    """A fault of the deliveries of one queue, for two seconds."""

    queue: str

    @property
    def name(self) -> str:
        return f"{self.kind}: {self.queue}"


class Duplicate(QueueFault):
    kind = "deliveries three times, in random order"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        return bool(redeliver(environment.vhost, self.queue, DURATION_S, 3, rng))


class Reorder(QueueFault):
    kind = "deliveries in random order"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        return bool(redeliver(environment.vhost, self.queue, DURATION_S, 1, rng))


class RedeliverAfterRun(QueueFault):
    kind = "deliveries once more after the run"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        taken = redeliver(environment.vhost, self.queue, DURATION_S, 1, rng)
        environment.after_run.append(lambda: _put_all(environment, taken))
        return bool(taken)


@dataclass(frozen=True)
class RepeatRequest(Fault):
    """The run's own request is published a second time: during the run, or (``late``) after it."""

    late: bool
    kind = "the run's request published twice"

    @property
    def name(self) -> str:
        return f"{self.kind}, {'after' if self.late else 'during'} the run"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        request = run.request
        properties = pika.BasicProperties(type=request.kind, delivery_mode=2, headers=request.headers)
        again = [Taken(request.route, properties, request.encode())]
        if self.late:
            environment.after_run.append(lambda: _put_all(environment, again))
        else:
            _put_all(environment, again)
        return True


def _put_all(environment: Environment, messages: list[Taken]) -> None:
    with open_channel(environment.vhost) as channel:
        for message in messages:
            put(channel, message)
