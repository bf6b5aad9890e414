"""Measurements of CPU time and scaling that ``cpu_monitor.py`` has written to ``OUTPUT/comparisons/NAME``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from workers.visualisation.archive import Archive

FOLDER = "comparisons"
FILE = "comparison.json"
PICTURE = "comparison.png"
#: The most measurements that are listed, the newest.
MAX_SHOWN = 20


class TextTable(msgspec.Struct):
    """A table of text; the first ``names`` columns are aligned to the left."""

    columns: list[str]
    rows: list[list[str]]
    names: int
    title: str
    note: str = ""


class Measurement(msgspec.Struct):
    """What the page shows of a comparison of platforms, or of a scan of numbers of replicas."""

    title: str
    caption: str = ""
    tables: list[TextTable] = []
    notes: list[str] = []
    made: dict[str, Any] = {}
    recordings: list[str] = []


# As in common/messages.py: the threads of the page must not derive this at the same time.
_DECODER = msgspec.json.Decoder(Measurement)


def archive(output: Path) -> Archive:
    """Return the measurements below the output folder.

    They are searched anew by each archive: a file that is written into an older folder does not change the time of
    the folder above, by which an archive would recognise it.
    """
    return Archive(output / FOLDER, FILE)


@lru_cache(maxsize=MAX_SHOWN)
def read(output: Path, name: str, _written_ns: int) -> Measurement:
    """Read a comparison.json; one that is not valid gives a measurement with a note that says so."""
    try:
        return _DECODER.decode(archive(output).read(name, FILE) or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Measurement("A comparison that cannot be read", notes=[f"its {FILE} is not valid"])
