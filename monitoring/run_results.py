"""The result of the recorded run: where it is found, and what a recording keeps of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any


def find_in_folders(folders: Iterable[Path], run_id: str | None, since: float) -> Mapping[str, Any] | None:
    """Return the ``result.json`` of a run below ``folders``, or None.

    With ``run_id`` None, this is the newest result whose file was written at or after ``since``.
    """
    found = []
    for folder in folders:
        for path in folder.glob(f"{run_id or '[!.]*'}/result.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if run_id or path.stat().st_mtime >= since:
                    found.append(json.loads(path.read_text()))
    return max(found, key=finished, default=None)


def find_in_container(
    execute: Callable[[Sequence[str]], str], output: str, run_id: str | None, since: float
) -> Mapping[str, Any] | None:
    """Return the ``result.json`` of a run in the folder ``output`` of a container, or None.

    ``execute`` runs a command in the container and returns its output. With
    ``run_id`` None, the last folder in the order of names is read: run ids begin with the time of submission.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):
        chosen = run_id or max(execute(["ls", output]).split(), default="")
        result = json.loads(execute(["cat", f"{output}/{chosen}/result.json"]))
        if run_id or finished(result) >= since:
            return dict(result)
    return None


def run_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recording's header keeps of a result.

    ``events`` is the number of events read, summed over samples. ``digest`` is
    the beginning of the SHA-256 of the histograms, which are identical to the
    last bit wherever the same run is done. ``analysed`` is when the last event was
    added, ``seconds`` is how long the events took until then, and ``waits`` what the chunks spent it on. ``replicas``
    has the number of replicas that worked on the run, by service.
    """
    samples = {name: [s["events_read"], s["events_selected"]] for name, s in result["samples"].items()}
    timing, provenance = result["timing"], result.get("provenance") or {}
    seconds, fit_seconds = timing.get("seconds"), timing.get("fit_seconds") or 0.0
    histograms = json.dumps(result.get("histograms"), sort_keys=True)
    return {
        "run_id": result["run_id"],
        "release": result["release"],
        "toy": result.get("toy"),
        "complete": result.get("complete"),
        "settings": result.get("settings"),
        "samples": samples,
        "events": sum(read for read, _ in samples.values()),
        "submitted": _seconds(timing["submitted"]),
        "finished": finished(result),
        "analysed": finished(result) - fit_seconds,
        "seconds": None if seconds is None else seconds - fit_seconds,
        "waits": timing.get("waits") or {},
        "replicas": {service: len(names) for service, names in (provenance.get("replicas") or {}).items()},
        "digest": hashlib.sha256(histograms.encode()).hexdigest()[:16],
    }


def finished(result: Mapping[str, Any]) -> float:
    """Return when a result was finished, in seconds since 1970."""
    return _seconds(result["timing"]["finished"])


def _seconds(timestamp: str | float) -> float:
    return datetime.fromisoformat(timestamp).timestamp() if isinstance(timestamp, str) else float(timestamp)


def result_folders(command: Sequence[str], output: str) -> list[Path]:
    """Return where ``command`` writes its result: its ``--output`` flag, else ``output``."""
    for index, argument in enumerate(command):
        if argument.startswith("--output="):
            return [Path(argument.partition("=")[2])]
        if argument == "--output" and index + 1 < len(command):
            return [Path(command[index + 1])]
    return [Path(output)]
