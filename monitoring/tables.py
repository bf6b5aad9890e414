"""Output in the terminal: current usage as a live table or JSON, and the summary of a recording."""

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
from monitoring.recording import Recording
from monitoring.sources.base import MACHINE, CounterSample

#: A container without a new sample for this many seconds no longer runs.
_STALE_S = 60.0


class CurrentUsage:
    """The latest sample of every container, and the CPU time each has used since its first."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, float], float] = {}
        self._latest: dict[tuple[str, float], CounterSample] = {}

    def show(self, samples: Sequence[CounterSample]) -> None:
        """Add new samples."""
        for sample in samples:
            self._first.setdefault(sample.lifetime, sample.cpu_seconds)
            self._latest[sample.lifetime] = sample

    def services(self) -> list[dict[str, Any]]:
        """Return one entry per service: cores and memory of running replicas, CPU seconds of all."""
        found: dict[str, list[CounterSample]] = {}
        for sample in self._latest.values():
            found.setdefault(sample.service, []).append(sample)
        newest = max((sample.time for sample in self._latest.values()), default=0.0)
        return [self._entry(service, found[service], newest) for service in usage.sort_services(found)]

    def _entry(self, service: str, samples: Sequence[CounterSample], now: float) -> dict[str, Any]:
        running = [sample for sample in samples if sample.state != "final" and now - sample.time < _STALE_S]

        def total(name: str) -> int | None:
            values = [value for sample in running if (value := getattr(sample, name)) is not None]
            return sum(values) if values else None

        cores = [sample.cores for sample in running if sample.cores is not None]
        return {
            "service": service,
            "replicas": len({sample.container for sample in running}),
            "cores": round(sum(cores), 4) if cores or not running else None,
            "cpu_seconds": round(sum(sample.cpu_seconds - self._first[sample.lifetime] for sample in samples), 6),
            "counter_seconds": round(sum(sample.cpu_seconds for sample in running), 6),
            "memory_bytes": total("memory_bytes"),
            "network_rx_bytes": total("network_rx_bytes"),
            "network_tx_bytes": total("network_tx_bytes"),
            "restarts": len(samples) - len({sample.container for sample in samples}),
        }


class LiveTable(CurrentUsage):
    """A table in the terminal that is updated with every sample; a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        super().__init__()
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, samples: Sequence[CounterSample]) -> None:
        """Add new samples and redraw the table."""
        super().show(samples)
        if samples:
            self._live.update(current_table(self.services(), self._title), refresh=True)


class JsonLines(CurrentUsage):
    """One line of JSON on standard output per set of samples."""

    def show(self, samples: Sequence[CounterSample]) -> None:
        """Add new samples and print the services."""
        super().show(samples)
        if samples:
            print(json.dumps({"time": time.time(), "services": self.services()}), flush=True)


def current_table(services: Sequence[Mapping[str, Any]], title: str, seconds: str = "cpu_seconds") -> Table:
    """Return a table of ``CurrentUsage.services``; ``seconds`` names the entry in the column of CPU seconds."""
    rows = [
        (
            row,
            str(row["replicas"]),
            "–" if row["cores"] is None else f"{row['cores']:.3f}",
            f"{row[seconds]:.2f}",
            megabytes(row["memory_bytes"]),
            megabytes(row["network_rx_bytes"]),
            megabytes(row["network_tx_bytes"]),
        )
        for row in services
    ]
    return _table(title, ("replicas", "cores", "CPU s", "memory", "net in", "net out"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Table:
    """Return a table of services; a row begins with the service's entry, followed by the cells.

    Restarts are shown if there are any. The rows of the machine and a total are set apart; a caption says what the
    total is the sum of.
    """
    restarted = any(entry["restarts"] for entry, *_ in rows)
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("service", no_wrap=True)
    for column in (*columns, *(["restarts"] if restarted else [])):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for entry, *cells in rows:
        kind = "total" if "of" in entry else entry["service"] in MACHINE
        if kind != before and before is not None:
            table.add_section()
        before = kind
        if "of" in entry:
            table.caption, table.caption_justify = f"{entry['service']}: {' + '.join(entry['of'])}", "left"
        table.add_row(entry["service"], *cells, *([str(entry["restarts"])] if restarted else []))
    return table


def summarize(recording: Recording) -> dict[str, Any]:
    """Return a recording's figures per service and for all services of the pipeline together."""
    by_service = usage.usage_by_service(recording)
    window_s = usage.sampling_period_s(recording)
    events = recording.part("run").get("events") or None
    seconds = usage.duration_s(by_service)
    in_total = usage.services_in_total(by_service)

    def figures(one: usage.ServiceUsage) -> dict[str, Any]:
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
        "services": [figures(one) for one in by_service.values()],
        "total": {**figures(usage.total_usage(by_service)), "of": in_total} if in_total else None,
        "problems": recording.header.get("problems") or [],
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the result of ``summarize`` as a table."""
    run, total = summary["run"], summary["total"]
    title = f"{summary['seconds']:.1f} s recorded, peaks over {summary['peak_over_seconds']:g} s"
    if run:
        title += f"; run {run['run_id']}, {run['events']:,} events"
    rows = []
    for row in [*summary["services"], *([total] if total else [])]:
        per_million = row["cpu_seconds_per_million_events"]
        rows.append(
            (
                row,
                str(row["replicas"]),
                f"{row['cpu_seconds']:.2f}",
                "–" if per_million is None else f"{per_million:.2f}",
                "–" if row["mean_cores"] is None else f"{row['mean_cores']:.3f}",
                f"{row['peak_cores']:.2f}",
                megabytes(row["peak_memory_bytes"]),
            )
        )
    return _table(title, ("replicas", "CPU s", "per 10⁶ ev.", "cores", "peak cores", "peak mem."), rows)


def megabytes(count: int | None) -> str:
    """Format a number of bytes in MB; a dash if it is not known."""
    return "–" if count is None else f"{count / 1e6:.{0 if count >= 1e9 else 1}f} MB"
