"""The state of the services and queues, from the messages that they send every second, as the page draws it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common import topology
from common.messages import Progress, QueueState, QueueStatus, ServiceStatus

#: The services in the order of the flow, each with the queue that it consumes.
FLOW = (
    ("data-loader", topology.CHUNKS.name),
    ("data-processor", topology.EVENTS.name),
    ("analysis", topology.SELECTED.name),
    ("visualisation", topology.VISUALISATION.name),
)
#: A replica is gone if it sends nothing for so long, while others do; it is shown for another GONE_SHOWN_S.
GONE_AFTER_S = 10.0
GONE_SHOWN_S = 60.0
#: Rates are those of the last so many messages of a replica, one a second.
RATE_MESSAGES = 6
#: A replica that is younger when its first message arrives has just started.
STARTED_WITHIN_S = 10.0
MAX_HAPPENINGS = 20
#: The most replicas that are kept, and seconds of which the CPU time and memory of the services are kept.
MAX_REPLICAS = 1_000
MAX_SAMPLES = 7_200


@dataclass(frozen=True)
class ReplicaState:
    """What a replica does; ``state`` is busy, idle, waiting, stopping or gone.

    ``events_per_second`` and ``cores`` (CPU time per time) are None until two messages have arrived.
    """

    status: ServiceStatus
    state: str
    events_per_second: float | None
    cores: float | None
    bytes_per_second: Mapping[str, float]

    @property
    def doing(self) -> str:
        """What it does, in words."""
        work = f"{self.status.work} of {self.status.run}" if self.status.work else self.status.run
        if self.state == "gone":
            return f"gone; it last handled {work}" if work else "gone"
        return f"{self.state}, {work}" if work else self.state


@dataclass(frozen=True)
class ServiceState:
    """A service and its replicas. ``cores`` and ``rss_bytes`` are None where it shares its process with others."""

    name: str
    replicas: tuple[ReplicaState, ...]
    events_per_second: float
    cores: float | None
    rss_bytes: int | None

    @property
    def counts(self) -> Counter[str]:
        """The number of replicas by state."""
        return Counter(replica.state for replica in self.replicas)


@dataclass(frozen=True)
class QueueView:
    """A queue; ``state`` is None until the broker has answered, and in an embedded run without one."""

    name: str
    state: QueueState | None
    bytes_per_second: float

    @property
    def fill(self) -> float:
        """How full it is, from 0 to 1; without a limit, 1 if it has messages."""
        if self.state is None:
            return 0.0
        return min(1.0, self.state.messages / self.state.limit) if self.state.limit else float(self.state.messages > 0)


@dataclass(frozen=True)
class PipelineState:
    """The services, each with the queue that it consumes, the other queues, and what happened last.

    ``happenings`` are times in seconds since 1970 and texts, the latest first. ``process`` has the cores and the
    memory of the process that all services share in an embedded run, else it is None. ``silent_s`` is the time since
    the last message, None before the first one.
    """

    flow: tuple[tuple[QueueView, ServiceState], ...]
    other_queues: tuple[QueueView, ...]
    happenings: tuple[tuple[float, str], ...]
    process: tuple[float | None, int] | None
    silent_s: float | None

    @property
    def in_words(self) -> str:
        """The text alternative of the picture."""
        parts = []
        for queue, service in self.flow:
            waiting = "unknown" if queue.state is None else f"{queue.state.messages}"
            states = ", ".join(f"{number} {state}" for state, number in service.counts.items()) or "no replica"
            parts.append(f"queue {queue.name}: {waiting} messages; {service.name}: {states}")
        return ". ".join(parts)


class Pipeline:
    """Keeps the latest messages of every replica. The service's loop updates it, and the page's threads read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._replicas: dict[tuple[str, str], _Replica] = {}
        self._queues: Mapping[str, QueueState] = {}
        self._happenings: deque[tuple[float, str]] = deque(maxlen=MAX_HAPPENINGS)
        self._latest_s: float | None = None
        #: For each service, times in seconds since 1970, and its cores and memory then.
        self._samples: dict[str, deque[tuple[float, float, int]]] = {}

    @property
    def version(self) -> object:
        """A value that changes once a second while messages arrive, and when something happens."""
        with self._lock:
            return int(self._latest_s or 0), tuple(self._happenings)[:1]

    def update(self, message: ServiceStatus | QueueStatus | Progress) -> None:
        """Apply a message. Of the progress of a run, only chunks that were delivered again are noted."""
        with self._lock:
            if isinstance(message, Progress):
                for span in message.spans:
                    if span.redeliveries and span.step != "waited":
                        text = (
                            f"{message.chunk} was delivered again, and {span.step} by {span.replica} ({span.service})"
                        )
                        self._happenings.appendleft((span.end, text))
                return
            self._latest_s = time.monotonic()
            if isinstance(message, QueueStatus):
                self._queues = {**self._queues, **message.queues}  # one for which the broker did not answer is left out
                self._check_replicas(self._latest_s)
                self._sample(message.at)
                return
            key = message.service, message.replica
            replica = self._replicas.get(key)
            if replica is None or replica.is_gone:
                if replica is not None and message.state == "stopping":
                    return  # it says so until it has handled its last message
                if len(self._replicas) >= MAX_REPLICAS:
                    return
                returned = replica is not None and replica.latest.since == message.since
                replica = self._replicas[key] = _Replica()
                if returned and message.state != "stopping":
                    self._happenings.appendleft((message.at, f"{message.replica} ({message.service}) is back"))
                elif message.at - message.since < STARTED_WITHIN_S:
                    self._happenings.appendleft((message.at, f"{message.replica} ({message.service}) has started"))
            replica.add(message, self._latest_s)
            if message.state == "stopping":
                replica.is_gone = True
                self._happenings.appendleft((message.at, f"{message.replica} ({message.service}) has stopped"))

    def state(self) -> PipelineState:
        """Return the state of all services and queues."""
        with self._lock:
            by_service: dict[str, list[ReplicaState]] = {name: [] for name, _ in FLOW}
            for (service, _), replica in sorted(self._replicas.items(), key=lambda one: one[1].latest.since):
                by_service.setdefault(service, []).append(replica.state())
            shared = self._shared()
            flow = tuple(
                (self._queue(queue, by_service[name]), _service(name, by_service[name], is_shared=bool(shared)))
                for name, queue in FLOW
            )
            named = {queue for _, queue in FLOW}
            everything = [one for replicas in by_service.values() for one in replicas]
            others = tuple(self._queue(name, everything) for name in self._queues if name not in named)
            silent_s = None if self._latest_s is None else time.monotonic() - self._latest_s
            process = None if shared is None else (shared.cores, shared.latest.rss_bytes)
            return PipelineState(flow, others, tuple(self._happenings), process, silent_s)

    def samples(self, start: float, end: float) -> dict[str, list[tuple[float, float, int]]]:
        """Return the cores and memory of each service between two times in seconds since 1970, one entry a second.

        The services are in the order of the flow.
        """
        order = [name for name, _ in FLOW]
        with self._lock:
            names = sorted(self._samples, key=lambda name: order.index(name) if name in order else len(order))
            found = {name: [one for one in self._samples[name] if start - 1 <= one[0] <= end + 1] for name in names}
        return {name: samples for name, samples in found.items() if samples}

    def _check_replicas(self, now_s: float) -> None:
        """Note which replicas are gone, and drop those that were gone for long."""
        newest_at = max((one.latest.at for one in self._replicas.values()), default=0.0)
        for key, replica in list(self._replicas.items()):
            silent_s, behind_s = now_s - replica.received_s, newest_at - replica.latest.at
            if replica.is_gone and silent_s > GONE_SHOWN_S:
                del self._replicas[key]
            # Both: clocks differ from machine to machine, and messages arrive late while this service is busy.
            elif not replica.is_gone and silent_s > GONE_AFTER_S and behind_s > GONE_AFTER_S:
                replica.is_gone = True
                what = f"{replica.latest.replica} ({replica.latest.service}) is gone"
                work = f"; it was handling {replica.latest.work}" if replica.latest.work else ""
                self._happenings.appendleft((newest_at, what + work))

    def _sample(self, at: float) -> None:
        shared = self._shared()
        names = {"all services": [shared]} if shared else self._by_service()
        for name, replicas in names.items():
            present = [one for one in replicas if not one.is_gone]
            cores, memory = sum(one.cores or 0.0 for one in present), sum(one.latest.rss_bytes for one in present)
            self._samples.setdefault(name, deque(maxlen=MAX_SAMPLES)).append((at, cores, memory))

    def _by_service(self) -> dict[str, list[_Replica]]:
        found: dict[str, list[_Replica]] = {}
        for (service, _), replica in self._replicas.items():
            found.setdefault(service, []).append(replica)
        return found

    def _shared(self) -> _Replica | None:
        """Return a replica of the process that several services share; None if there is no such process."""
        seen: dict[tuple[str, int], str] = {}
        for replica in self._replicas.values():
            of = replica.latest.host, replica.latest.pid
            if not replica.is_gone and seen.setdefault(of, replica.latest.service) != replica.latest.service:
                return replica
        return None

    def _queue(self, name: str, replicas: Iterable[ReplicaState]) -> QueueView:
        return QueueView(name, self._queues.get(name), sum(one.bytes_per_second.get(name, 0.0) for one in replicas))


class _Replica:
    """The latest messages of a replica."""

    def __init__(self) -> None:
        self.is_gone = False
        self.received_s = 0.0
        self._messages: deque[ServiceStatus] = deque(maxlen=RATE_MESSAGES)

    def add(self, message: ServiceStatus, received_s: float) -> None:
        self._messages.append(message)
        self.received_s = received_s

    @property
    def latest(self) -> ServiceStatus:
        return self._messages[-1]

    @property
    def cores(self) -> float | None:
        return self._rate(self._messages[0].cpu_seconds, self.latest.cpu_seconds)

    def state(self) -> ReplicaState:
        first, last = self._messages[0], self.latest
        if self.is_gone:
            return ReplicaState(last, "gone", None, None, {})
        rates = {
            queue: rate
            for queue, received in last.received_bytes.items()
            if (rate := self._rate(first.received_bytes.get(queue, 0), received)) is not None
        }
        return ReplicaState(last, last.state, self._rate(first.events, last.events), self.cores, rates)

    def _rate(self, first: float, last: float) -> float | None:
        seconds = self.latest.at - self._messages[0].at
        return None if seconds <= 0 or last < first else (last - first) / seconds


def _service(name: str, replicas: Sequence[ReplicaState], *, is_shared: bool) -> ServiceState:
    present = [one for one in replicas if one.state != "gone"]
    return ServiceState(
        name,
        tuple(replicas),
        sum(one.events_per_second or 0.0 for one in present),
        None if is_shared or not present else sum(one.cores or 0.0 for one in present),
        None if is_shared or not present else sum(one.status.rss_bytes for one in present),
    )
