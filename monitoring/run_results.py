"""Which run was recorded: found by its result.json, and told by what decides its numbers."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any


def find_result(folders: Sequence[Path], run_id: str | None, since: float) -> Mapping[str, Any] | None:
    """The result.json of a run below one of ``folders``; without ``run_id`` the newest finished after ``since``."""
    found = []
    for folder in folders:
        for path in folder.glob(f"{run_id or '[!.]*'}/result.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if run_id or path.stat().st_mtime >= since:
                    result = json.loads(path.read_text())
                    if run_id or finished(result) >= since:
                        found.append((finished(result), result))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a recording's header keeps of a result.

    ``events`` is what was read, of all samples; ``digest`` tells results
    apart: it is the SHA-256 of the histograms, which are the same to the last
    bit wherever the same run is done.
    """
    samples = {name: [s["events_read"], s["events_selected"]] for name, s in result["samples"].items()}
    histograms = json.dumps(result.get("histograms"), sort_keys=True)
    return {
        "run_id": result["run_id"],
        "release": result["release"],
        "toy": result.get("toy"),
        "complete": result.get("complete"),
        "settings": result.get("settings"),
        "samples": samples,
        "events": sum(read for read, _ in samples.values()),
        "submitted": _seconds(result["timing"]["submitted"]),
        "finished": finished(result),
        "digest": hashlib.sha256(histograms.encode()).hexdigest()[:16],
    }


def finished(result: Mapping[str, Any]) -> float:
    """When a result was finished, in seconds since 1970."""
    return _seconds(result["timing"]["finished"])


def _seconds(moment: str | float) -> float:
    return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else float(moment)


def result_folders(command: Sequence[str], output: str) -> list[Path]:
    """Where a command's result may come to: its ``--output``, else ``output``."""
    words = list(command)
    for place, word in enumerate(words):
        if word.startswith("--output="):
            return [Path(word.partition("=")[2])]
        if word == "--output" and place + 1 < len(words):
            return [Path(words[place + 1])]
    return [Path(output)]
