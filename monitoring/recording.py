"""Recordings: CSV or JSON Lines files of counter samples, with a header of ``# key: JSON value`` lines."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from monitoring.sources.base import CounterSample, MonitorError

#: The columns of a file, in order.
COLUMNS = (
    "time", "service", "replica", "container", "cpu_seconds", "cores", "memory_bytes", "network_rx_bytes",
    "network_tx_bytes", "disk_read_bytes", "disk_write_bytes", "throttled_seconds", "started", "restarts", "state",
)  # fmt: skip
_REQUIRED = ("time", "service", "replica", "container", "cpu_seconds")
_TEXT = ("service", "replica", "container", "state")
_INTEGER = ("restarts", *(column for column in COLUMNS if column.endswith("_bytes")))
_DECIMALS = {"time": 6, "started": 6, "cpu_seconds": 6, "cores": 4, "throttled_seconds": 6}

Header = Mapping[str, Any]


class RateCalculator:
    """Adds to each sample the cores used since an earlier sample of the same container lifetime.

    The earlier sample is more than ``min_s`` seconds older: many counters increase in steps of 10 ms, which say nothing
    about a few milliseconds. A sample that follows sooner has the cores of the one before.
    """

    def __init__(self, min_s: float = 0.0) -> None:
        self._min_s = min_s
        self._previous: dict[tuple[str, float], CounterSample] = {}

    def add_cores(self, sample: CounterSample) -> CounterSample:
        """Return the sample with ``cores``; the first of a lifetime keeps the figure of its source."""
        previous = self._previous.get(sample.lifetime)
        if previous is not None:
            seconds = sample.time - previous.time
            if 0 <= seconds <= self._min_s:
                return sample if previous.cores is None else replace(sample, cores=previous.cores)
            if seconds > 0:  # else the clock was set back
                sample = replace(sample, cores=(sample.cpu_seconds - previous.cpu_seconds) / seconds)
        self._previous[sample.lifetime] = sample
        return sample


@dataclass(frozen=True)
class Recording:
    """The content of a file: its name without suffix, header and samples."""

    name: str
    header: Header
    samples: Sequence[CounterSample]

    def part(self, key: str) -> Mapping[str, Any]:
        """Return a mapping of the header, such as ``run``; empty if it is missing."""
        value = self.header.get(key)
        return value if isinstance(value, Mapping) else {}


class RecordingFile:
    """Writes a recording so that the file is valid at any time.

    Rows are written as samples arrive; ``finish`` writes the final header. The
    suffix ``.jsonl`` selects JSON Lines; all others, and pipes, are CSV. Raises
    MonitorError if the file cannot be opened or written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._is_json = path.suffix == ".jsonl"
        self._samples: list[CounterSample] = []
        self._error: OSError | None = None
        with self._reported():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("w", encoding="utf-8", newline="")
            #: A pipe or a device such as /dev/stdout cannot be replaced.
            self._is_replaced = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
            try:
                self._write_header(self._file, header)
                self._file.flush()
            except OSError:
                self._close()
                raise

    def add(self, samples: Sequence[CounterSample]) -> None:
        """Write samples and flush them to the file. Samples that cannot be written now are written by ``finish``."""
        self._samples += samples
        if self._error is None:
            try:
                self._write_rows(self._file, samples)
                self._file.flush()
            except OSError as error:
                self._error = error

    def finish(self, header: Header) -> None:
        """Replace the file atomically by one with the final header and the samples sorted by time.

        A pipe or a device keeps what was written. Raises MonitorError if a part of the recording cannot be written;
        a file then has what was written before.
        """
        self._close()
        with self._reported():
            if self._is_replaced:
                self._replace(header)
            elif self._error is not None:
                raise self._error

    def _replace(self, header: Header) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            with new.open("w", encoding="utf-8", newline="") as file:
                self._write_header(file, header)
                self._write_rows(file, sorted(self._samples, key=lambda sample: sample.time))
            os.replace(new, self.path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raise MonitorError, which names the file, in place of an OSError."""
        try:
            yield
        except OSError as error:
            raise MonitorError(f"--output {self.path}: {error.strerror}") from None

    def _write_header(self, file: IO[str], header: Header) -> None:
        for key, value in header.items():
            file.write(f"# {key}: {json.dumps(value, ensure_ascii=False)}\n")
        if not self._is_json:
            file.write(",".join(COLUMNS) + "\n")

    def _write_rows(self, file: IO[str], samples: Iterable[CounterSample]) -> None:
        rows = (_row(sample) for sample in samples)
        if self._is_json:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


def _row(sample: CounterSample) -> dict[str, Any]:
    row = {column: getattr(sample, column) for column in COLUMNS}
    return {key: round(value, _DECIMALS[key]) if isinstance(value, float) else value for key, value in row.items()}


def read_recording(path: Path) -> Recording:
    """Read a file; raises MonitorError that names the file, the line and the problem.

    Columns after ``cpu_seconds`` are optional. Without ``started``, a counter
    that decreases marks the beginning of a new container lifetime.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise MonitorError(f"{path}: cannot be read: {reason}") from None
    header: dict[str, Any] = {}
    body = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            try:
                header[key.strip()] = json.loads(value)
            except ValueError:
                header[key.strip()] = value.strip()
        elif line.strip():
            body.append((number, line))
    rows: Iterable[tuple[int, Mapping[str, Any]]] = ()
    if body:
        rows = _json_rows(path, body) if body[0][1].lstrip().startswith("{") else _csv_rows(path, body)
    samples = [_parse_sample(path, number, row) for number, row in rows]
    if not samples:
        raise MonitorError(f"{path}: holds no samples")
    return Recording(path.stem, header, _with_start_times(samples))


def _json_rows(path: Path, body: Sequence[tuple[int, str]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for number, line in body:
        try:
            row = json.loads(line)
        except ValueError:
            raise MonitorError(f"{path}, line {number}: not JSON") from None
        if not isinstance(row, dict):
            raise MonitorError(f"{path}, line {number}: not a JSON object")
        yield number, row


def _csv_rows(path: Path, body: Sequence[tuple[int, str]]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO("\n".join(line for _, line in body)))
    missing = [column for column in _REQUIRED if column not in (reader.fieldnames or ())]
    if missing:
        raise MonitorError(f"{path}: not a recording: it lacks the column {missing[0]!r}")
    yield from zip((number for number, _ in body[1:]), reader, strict=False)


def _parse_sample(path: Path, number: int, row: Mapping[str, Any]) -> CounterSample:
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key not in COLUMNS or value is None or value == "":
            continue
        try:
            values[key] = value if key in _TEXT else int(value) if key in _INTEGER else float(value)
        except (TypeError, ValueError, OverflowError):
            raise MonitorError(f"{path}, line {number}: {key}={value!r} is not a number") from None
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise MonitorError(f"{path}, line {number}: {key}={value!r} is not finite")
    missing = [column for column in _REQUIRED if column not in values]
    if missing:
        raise MonitorError(f"{path}, line {number}: lacks {missing[0]!r}")
    return CounterSample(**{"started": math.nan, **values})


def _with_start_times(samples: Sequence[CounterSample]) -> list[CounterSample]:
    """Sort samples by time, and where ``started`` is missing take the time of the lifetime's first sample."""
    complete: list[CounterSample] = []
    previous: dict[str, CounterSample] = {}
    for sample in sorted(samples, key=lambda sample: sample.time):
        if math.isnan(sample.started):
            last = previous.get(sample.container)
            if last is None:
                started = sample.time
            elif sample.cpu_seconds >= last.cpu_seconds:
                started = last.started
            else:  # the counter restarted from zero, at the earliest at the sample before
                started = last.time
                zero = replace(sample, time=started, started=started, cpu_seconds=0.0, cores=None, memory_bytes=None)
                complete.append(replace(zero, state="started"))
            sample = previous[sample.container] = replace(sample, started=started)  # noqa: PLW2901
        complete.append(sample)
    return complete
