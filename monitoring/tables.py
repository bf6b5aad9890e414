"""What a person sees: the live table with replicas folded, and the summary in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from monitoring import usage
from monitoring.recording import Recording, Sample
from monitoring.sources.base import HOST

#: A counter that has not been read for so long belongs to something that is gone.
_GONE_S = 60.0


class Now:
    """The latest sample of every life, and what each has used since the beginning."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, float], float] = {}
        self._latest: dict[tuple[str, float], Sample] = {}

    def show(self, samples: Sequence[Sample]) -> None:
        """Take in new samples."""
        for sample in samples:
            self._first.setdefault(sample.reading.life, sample.reading.cpu_seconds)
            self._latest[sample.reading.life] = sample

    def services(self) -> list[dict[str, Any]]:
        """One entry per service, replicas folded: cores and memory of those that live, CPU seconds of all."""
        found: dict[str, list[Sample]] = {}
        for sample in self._latest.values():
            found.setdefault(sample.reading.service, []).append(sample)
        return [self._folded(service, found[service]) for service in usage.in_order(found)]

    def _folded(self, service: str, samples: Sequence[Sample]) -> dict[str, Any]:
        now = time.time()
        alive = [s for s in samples if s.reading.state != "final" and now - s.reading.time < _GONE_S]
        containers = {sample.reading.container for sample in samples}

        def sum_of(name: str) -> int | None:
            values = [value for s in alive if (value := getattr(s.reading, name)) is not None]
            return sum(values) if values else None

        return {
            "service": service,
            "replicas": len({sample.reading.container for sample in alive}),
            "cores": round(sum(sample.cores or 0.0 for sample in alive), 4),
            "cpu_seconds": round(sum(s.reading.cpu_seconds - self._first[s.reading.life] for s in samples), 6),
            "counter_seconds": round(sum(sample.reading.cpu_seconds for sample in alive), 6),
            "memory_bytes": sum_of("memory_bytes"),
            "network_rx_bytes": sum_of("network_rx_bytes"),
            "network_tx_bytes": sum_of("network_tx_bytes"),
            "restarts": len(samples) - len(containers),
        }


class LiveTable(Now):
    """A table in the terminal that follows; a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__()
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, samples: Sequence[Sample]) -> None:
        """Take in new samples and draw."""
        super().show(samples)
        if samples:
            self._live.update(now_table(self.services(), self._title), refresh=True)


class JsonLines(Now):
    """One line of JSON on standard output for every sampling."""

    def show(self, samples: Sequence[Sample]) -> None:
        """Take in new samples and print the services."""
        super().show(samples)
        if samples:
            print(json.dumps({"time": time.time(), "services": self.services()}), flush=True)


def now_table(services: Sequence[Mapping[str, Any]], title: str, seconds: str = "cpu_seconds") -> Table:
    """The services as they are now; ``seconds`` is the entry that the column of CPU seconds shows."""
    restarted = any(row["restarts"] for row in services)
    columns = ("replicas", "cores", "CPU s", "memory", "net in", "net out", *(["restarts"] if restarted else []))
    table = _table(title, columns)
    for row in services:
        if row["service"] == HOST:
            table.add_section()
        table.add_row(
            row["service"],
            str(row["replicas"]),
            f"{row['cores']:.3f}",
            f"{row[seconds]:.2f}",
            size(row["memory_bytes"]),
            size(row["network_rx_bytes"]),
            size(row["network_tx_bytes"]),
            *([str(row["restarts"])] if restarted else []),
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("service", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def summary(recording: Recording) -> dict[str, Any]:
    """A recording in numbers: per service, and all of the pipeline together."""
    used = usage.usages(recording)
    window_s = usage.resolution_s(recording)
    events = (recording.header.get("run") or {}).get("events") or None
    seconds = usage.seconds_recorded(used)
    counted = usage.counted(used)

    def figures(one: usage.Usage) -> dict[str, Any]:
        return {
            "service": one.service,
            "replicas": one.replicas,
            "restarts": one.restarts,
            "cpu_seconds": round(one.cpu_seconds, 6),
            "cpu_seconds_per_million_events": round(one.cpu_seconds / events * 1e6, 6) if events else None,
            "mean_cores": round(one.cpu_seconds / seconds, 6) if seconds else None,
            "peak_cores": round(one.peak_cores(window_s), 6),
            "peak_memory_bytes": one.peak_memory_bytes,
        }

    return {
        "seconds": round(seconds, 6),
        "peak_over_seconds": round(window_s, 3),
        "run": recording.header.get("run"),
        "services": [figures(one) for one in used.values()],
        "total": {**figures(usage.together(used)), "of": counted} if counted else None,
        "problems": recording.header.get("problems") or [],
    }


def summary_table(numbers: Mapping[str, Any]) -> Table:
    """A recording's summary for the eye."""
    run = numbers["run"]
    title = f"{numbers['seconds']:.1f} s recorded, peaks over {numbers['peak_over_seconds']:g} s"
    if run:
        title += f"; run {run['run_id']}, {run['events']:,} events"
    restarted = any(row["restarts"] for row in numbers["services"])
    columns = ("replicas", "CPU s", "per 10⁶ ev.", "cores", "peak cores", "peak mem.")
    table = _table(title, (*columns, *(["restarts"] if restarted else [])))
    total = numbers["total"]
    for row in [*numbers["services"], *([total] if total else [])]:
        if row["service"] == HOST or row is total:
            table.add_section()
        per_million = row["cpu_seconds_per_million_events"]
        table.add_row(
            row["service"],
            str(row["replicas"]),
            f"{row['cpu_seconds']:.2f}",
            "–" if per_million is None else f"{per_million:.2f}",
            "–" if row["mean_cores"] is None else f"{row['mean_cores']:.3f}",
            f"{row['peak_cores']:.2f}",
            size(row["peak_memory_bytes"]),
            *([str(row["restarts"])] if restarted else []),
        )
    return table


def size(count: int | None) -> str:
    """A number of bytes in MB, where it is known."""
    return "–" if count is None else f"{count / 1e6:.{0 if count >= 1e9 else 1}f} MB"
