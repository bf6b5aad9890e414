"""Recordings: files of readings, as CSV or JSON lines, headed by ``#`` lines that say what was measured where."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from monitoring.sources.base import MonitorError, Reading

#: The columns of a file, in order. ``cores`` is what was used since the life's sample before, per second.
COLUMNS = (
    "time", "service", "replica", "container", "cpu_seconds", "cores", "memory_bytes", "network_rx_bytes",
    "network_tx_bytes", "disk_read_bytes", "disk_write_bytes", "throttled_seconds", "started", "restarts", "state",
)  # fmt: skip
_NEEDED = ("time", "service", "replica", "container", "cpu_seconds")
_TEXT = ("service", "replica", "container", "state")
_WHOLE = ("restarts", *(column for column in COLUMNS if column.endswith("_bytes")))
_DECIMALS = {"time": 6, "started": 6, "cpu_seconds": 6, "cores": 4, "throttled_seconds": 6}

Header = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """A reading, and the cores used since the sample before it; None for a life's first."""

    reading: Reading
    cores: float | None


class Sampler:
    """Turns readings into samples: knows each life's reading before."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, float], Reading] = {}

    def sample(self, reading: Reading) -> Sample:
        """The reading with the cores since the one before."""
        before = self._before.get(reading.life)
        self._before[reading.life] = reading
        if before is None or reading.time <= before.time:
            return Sample(reading, reading.rate_cores)
        return Sample(reading, (reading.cpu_seconds - before.cpu_seconds) / (reading.time - before.time))


@dataclass(frozen=True)
class Recording:
    """What a file holds."""

    name: str
    header: Header
    samples: Sequence[Sample]


class RecordingFile:
    """A file that is whole at any time: rows as they come, the full header in the end.

    The suffix decides: ``.jsonl`` and ``.json`` are JSON lines, all else is CSV.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._json = path.suffix in (".json", ".jsonl")
        self._samples: list[Sample] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise MonitorError(f"--output {path}: {error.strerror}") from None
        self._head(self._file, header)

    def add(self, samples: Iterable[Sample]) -> None:
        """Write samples, and bring them to the file at once."""
        samples = list(samples)
        self._samples += samples
        self._rows(self._file, samples)
        self._file.flush()

    def finish(self, header: Header) -> None:
        """Replace the file, in one step, by one with the final header and the samples in order of time."""
        self._file.close()
        if not self.path.is_file():  # a pipe, /dev/stdout: what is written is written
            return
        new = self.path.with_name(f".{self.path.name}.new")
        with new.open("w", encoding="utf-8", newline="") as file:
            self._head(file, header)
            self._rows(file, sorted(self._samples, key=lambda sample: sample.reading.time))
        os.replace(new, self.path)

    def _head(self, file: IO[str], header: Header) -> None:
        for key, value in header.items():
            file.write(f"# {key}: {json.dumps(value, ensure_ascii=False)}\n")
        if not self._json:
            file.write(",".join(COLUMNS) + "\n")

    def _rows(self, file: IO[str], samples: Iterable[Sample]) -> None:
        rows = (_row(sample) for sample in samples)
        if self._json:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


def _row(sample: Sample) -> dict[str, Any]:
    row = {column: getattr(sample.reading, column, None) for column in COLUMNS}
    row["cores"] = sample.cores
    return {key: round(value, _DECIMALS[key]) if isinstance(value, float) else value for key, value in row.items()}


def read_recording(path: Path) -> Recording:
    """Read a file; raises MonitorError saying what is wrong with it, and in which line.

    The columns after ``cpu_seconds`` may be missing. Where a file does not say
    when a container started, a counter that falls is taken for another life.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
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
    if not body:
        raise MonitorError(f"{path}: holds no samples")
    rows = _json_rows(path, body) if body[0][1].lstrip().startswith("{") else _csv_rows(path, body)
    samples = [_sample(path, number, row) for number, row in rows]
    if not samples:
        raise MonitorError(f"{path}: holds no samples")
    return Recording(path.stem, header, _lives_told_apart(samples))


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
    missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
    if missing:
        raise MonitorError(f"{path}: not a recording: it lacks the column {missing[0]!r}")
    yield from zip((number for number, _ in body[1:]), reader, strict=False)


def _sample(path: Path, number: int, row: Mapping[str, Any]) -> Sample:
    values: dict[str, Any] = {}
    names = {field.name for field in fields(Reading)} | {"cores"}
    for key, value in row.items():
        if key not in names or value is None or value == "":
            continue
        try:
            values[key] = value if key in _TEXT else int(value) if key in _WHOLE else float(value)
        except (TypeError, ValueError):
            raise MonitorError(f"{path}, line {number}: {key}={value!r} is not a number") from None
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise MonitorError(f"{path}, line {number}: {key}={value!r} is not finite")
    missing = [column for column in _NEEDED if column not in values]
    if missing:
        raise MonitorError(f"{path}, line {number}: lacks {missing[0]!r}")
    cores = values.pop("cores", None)
    return Sample(Reading(**{"started": math.nan, **values}), cores)


def _lives_told_apart(samples: Sequence[Sample]) -> list[Sample]:
    """Give each sample the start of its life where the file leaves it out: the first sample of it."""
    told: list[Sample] = []
    current: dict[str, Reading] = {}
    for sample in sorted(samples, key=lambda sample: sample.reading.time):
        reading = sample.reading
        if math.isnan(reading.started):
            before = current.get(reading.container)
            same = before is not None and reading.cpu_seconds >= before.cpu_seconds
            # A counter that fell began again at zero, at the latest after the sample before.
            begun = reading.time if before is None else before.started if same else before.time
            if before is not None and not same:
                born = replace(reading, time=begun, started=begun, cpu_seconds=0.0, state="started", memory_bytes=None)
                told.append(Sample(born, None))
            reading = replace(reading, started=begun)
            current[reading.container] = reading
        told.append(Sample(reading, sample.cores))
    return told
