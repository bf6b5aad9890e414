"""What a restart of the service must not forget of the runs that have no result folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from common.errors import MessageError, SettingsError
from common.messages import Name, Progress, Stage
from common.settings import RunSettings
from physics import RELEASES
from workers.visualisation.page.pace import Done, Pace

log = logging.getLogger(__name__)


class Kept(msgspec.Struct):
    """What the journal keeps of a run; ``done`` is what each stage has done, times are in seconds since 1970."""

    run_id: Name
    began: float
    settings: RunSettings | None = None
    plan: dict[str, int] = {}
    done: dict[Stage, Done] = {}
    failed: float | None = None
    problem: str | None = None


class Journal:
    """A file of the runs that are under way or failed: a line with all of them, then a line for each chunk since."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Kept]:
        """What was written last; nothing where that cannot be read, as another version's may not be."""
        try:
            first, *chunks = self._path.read_bytes().splitlines()
            kept = {one.run_id: one for one in msgspec.json.decode(first, type=list[Kept])}
            for line in chunks:
                progress = Progress.decode(line, RELEASES)
                done = kept[progress.chunk.run_id].done.setdefault(progress.stage, {})
                Pace(done).add(progress.chunk)
        except FileNotFoundError:
            return []
        except MessageError:  # the last line, cut off by a kill: that message comes again
            return list(kept.values())
        except (OSError, KeyError, ValueError, SettingsError) as error:
            log.warning("the runs that were under way cannot be read from %s: %s", self._path, error)
            return []
        return list(kept.values())

    def write(self, kept: Iterable[Kept]) -> None:
        """Write all that is to be kept, in one step."""
        new = self._path.with_suffix(".new")
        with self._warning():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(msgspec.json.encode(list(kept)) + b"\n")
            os.replace(new, self._path)

    def note(self, progress: Progress) -> None:
        """Add a chunk of a run that was written."""
        with self._warning(), self._path.open("ab") as file:
            file.write(progress.encode() + b"\n")

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("the runs under way cannot be noted in %s: %s", self._path, error)
