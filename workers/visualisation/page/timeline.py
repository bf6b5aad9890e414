"""The timeline of a run: what each replica did when, merged to what a picture can show, and what the run waited for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.messages import Span, Step
from workers.visualisation.page.usage import CORES, Sample

#: The steps, in the order of the legend. Waits of several chunks overlap; they are drawn as a strip of their own.
WORK = ("planned", "read", "selected", "added", "published")
WAITED = "waited"
SERVICES = ("data-loader", "data-processor", "analysis")
#: The picture is divided into so many columns.
COLUMNS = 1000
#: The most rows that are drawn.
MAX_ROWS = 40
#: A column shows a step if that took so much of it.
VISIBLE = 0.1

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """The row of a replica: for each step the columns, as (first, number of columns), in which it took most time.

    ``redelivered`` are the columns in which it began work on a chunk that had been delivered before. ``busy`` is the
    fraction of the time in which it worked.
    """

    service: str
    replica: str
    steps: Mapping[str, Sequence[tuple[int, int]]]
    redelivered: Sequence[int]
    busy: float
    chunks: int


@dataclass(frozen=True)
class Wait:
    """What the chunks of a run spent time on: the total and the mean per chunk in seconds, of ``chunks`` chunks.

    ``most`` is the longest one.
    """

    service: str
    step: str
    seconds: float
    most: float
    chunks: int

    @property
    def mean(self) -> float:
        """The mean per chunk, in seconds."""
        return self.seconds / self.chunks


@dataclass(frozen=True)
class TimelineParts:
    """What the page shows of a timeline; ``limits`` are its start and end in seconds since 1970.

    ``samples`` has the CPU and memory of the services if the timeline is that of a file.
    """

    rows: Sequence[Row]
    waits: Sequence[Wait]
    limits: tuple[float, float]
    samples: Mapping[str, Sequence[Sample]]


class Timeline:
    """The spans of the chunks of a run, by replica and step."""

    def __init__(self) -> None:
        #: Start and end of each span, in seconds since 1970, one after the other.
        self._times: dict[tuple[str, str, str], array[float]] = {}
        #: The starts of work on chunks that had been delivered before, by service and replica.
        self._redelivered: dict[tuple[str, str], array[float]] = {}
        #: The CPU and memory of the services, as ``with_usage`` wrote it into the file.
        self.samples: dict[str, list[Sample]] = {}

    @classmethod
    def of_file(cls, content: bytes) -> Timeline:
        """Read a timeline.json (Chrome's trace event format); raises msgspec.MsgspecError for another file."""
        trace = _DECODER.decode(content)
        timeline, names = cls(), {}
        for event in trace.traceEvents:
            if event.ph == "M":
                names[event.name, event.pid, event.tid if event.name == "thread_name" else 0] = event.args.get("name")
        for event in trace.traceEvents:
            if event.ph == "X":
                service = str(names.get(("process_name", event.pid, 0), event.pid))
                replica = str(names.get(("thread_name", event.pid, event.tid), event.tid))
                end = event.ts + event.dur
                start = end - event.args["in_queue_us"] if "in_queue_us" in event.args else event.ts
                redeliveries = event.args.get("redeliveries", 0)
                step = cast("Step", event.name)
                timeline.add([Span(step, service, replica, start / 1e6, end / 1e6, redeliveries)])
            elif event.ph == "C" and event.name.endswith(CORES):
                sample = event.ts / 1e6, event.args.get("cores", 0.0), event.args.get("bytes", 0)
                timeline.samples.setdefault(event.name.removesuffix(CORES), []).append(sample)
        return timeline

    def add(self, spans: Iterable[Span]) -> None:
        """Add the spans of a chunk."""
        for span in spans:
            of = span.service, span.replica
            self._times.setdefault((*of, span.step), array("d")).extend((span.start, span.start + span.seconds))
            if span.redeliveries and span.step != WAITED:
                self._redelivered.setdefault(of, array("d")).append(span.start)

    def parts(self) -> TimelineParts | None:
        """Return what the page shows; None without a span."""
        return TimelineParts(self.rows(), self.waits(), self.limits(), self.samples) if self._times else None

    def limits(self) -> tuple[float, float]:
        """Return the first start and the last end, in seconds since 1970; raises ValueError without a span."""
        return min(min(times[::2]) for times in self._times.values()), max(
            max(times[1::2]) for times in self._times.values()
        )

    def rows(self) -> list[Row]:
        """Return the rows of the replicas by service, in the order in which they began; at most MAX_ROWS."""
        start, end = self.limits()
        edges = np.linspace(start, max(end, start + 1e-3), COLUMNS + 1)
        replicas = sorted(
            {(service, replica) for service, replica, _ in self._times},
            key=lambda one: (SERVICES.index(one[0]) if one[0] in SERVICES else len(SERVICES), self._begin(*one), one),
        )
        return [self._row(service, replica, edges) for service, replica in replicas[:MAX_ROWS]]

    def waits(self) -> list[Wait]:
        """Return what the chunks spent time on, the longest total first."""
        by_step: dict[tuple[str, str], list[FloatArray]] = {}
        for (service, _, step), times in self._times.items():
            spans = np.frombuffer(times).reshape(-1, 2)
            by_step.setdefault((service, step), []).append(spans[:, 1] - spans[:, 0])
        lengths = {key: np.concatenate(parts) for key, parts in by_step.items()}
        found = [Wait(*key, float(one.sum()), float(one.max()), len(one)) for key, one in lengths.items()]
        return sorted(found, key=lambda wait: wait.seconds, reverse=True)

    def _spans(self, service: str, replica: str, step: str) -> FloatArray:
        times = self._times.get((service, replica, step))
        return np.empty((0, 2)) if times is None else np.array(times).reshape(-1, 2)

    def _begin(self, service: str, replica: str) -> float:
        return min(min(times[::2]) for (*of, _), times in self._times.items() if of == [service, replica])

    def _row(self, service: str, replica: str, edges: FloatArray) -> Row:
        spans = {step: self._spans(service, replica, step) for step in (*WORK, WAITED)}
        width = edges[1] - edges[0]
        covered = np.stack([_covered(spans[step], edges) / width for step in WORK])
        shown = np.where(covered.max(axis=0) > VISIBLE, covered.argmax(axis=0), -1)
        steps = {step: _ranges(shown == index) for index, step in enumerate(WORK)}
        steps[WAITED] = _ranges(_covered(spans[WAITED], edges) / width > VISIBLE)
        starts = np.array(self._redelivered.get((service, replica), ()))
        columns = np.clip(((starts - edges[0]) / width).astype(int), 0, COLUMNS - 1)
        work = np.minimum(covered.sum(axis=0), 1.0)
        return Row(
            service,
            replica,
            {step: ranges for step, ranges in steps.items() if ranges},
            sorted(set(columns.tolist())),
            float(work.mean()),
            sum(len(spans[step]) for step in ("read", "selected", "added")),
        )


class _Event(msgspec.Struct):
    ph: str
    name: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: int = 0
    tid: int = 0
    args: dict[str, Any] = {}


class _Trace(msgspec.Struct):
    traceEvents: list[_Event]  # noqa: N815  the name of the format


# As in common/messages.py: the threads of the page must not derive this at the same time.
_DECODER = msgspec.json.Decoder(_Trace)


def _covered(spans: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the time that spans, shape (n, 2), take of each column; overlapping ones count twice."""

    def before(times: FloatArray) -> FloatArray:
        """Return the sum of (edge - time) over the times before each edge."""
        times = np.sort(times) - edges[0]
        number = np.searchsorted(times, edges - edges[0])
        sums: FloatArray = np.concatenate([[0.0], np.cumsum(times)])
        total: FloatArray = number * (edges - edges[0]) - sums[number]
        return total

    covered: FloatArray = np.diff(before(spans[:, 0]) - before(spans[:, 1]))
    return covered


def _ranges(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the ranges of columns that are marked, as (first, number)."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8)))
    return [(int(first), int(last - first)) for first, last in zip(changes[::2], changes[1::2], strict=True)]
