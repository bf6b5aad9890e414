"""Faults of the disks that the services write to."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fault import Fault, OfService
from tests.chaos.stage import Run, Stage


@dataclass(frozen=True)
class FullDisk(OfService):
    """No file of the service can grow, until it has said that it waits."""

    complaint: str = ""

    @property
    def kind(self) -> str:
        return f"disk full: {self.service}"

    @property
    def name(self) -> str:
        return self.kind

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        log = stage.workers.folder / f"{self.service}.log"
        limit = log.stat().st_size + 32 * 1024  # the log itself needs some room
        complained = news_in(log, self.complaint)
        with stage.file_size_limit(self.service, limit):
            return run.wait_for(complained)


class FillDisk(Fault):
    """The database's file system is filled to the last byte, where it is one of its own (made by root)."""

    kind = "file system full: analysis"

    def inflict(self, stage: Stage, run: Run, rng: random.Random) -> bool:
        if not stage.workers.database.is_mount():
            return False
        complained = news_in(stage.workers.folder / "analysis.log", "waits: the database")
        ballast = stage.workers.database / "ballast"
        try:
            with suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            return run.wait_for(complained)
        finally:
            ballast.unlink()


def news_in(log: Path, text: str) -> Callable[[], bool]:
    """Whether a text has come into a log since now."""
    size = log.stat().st_size

    def has_come() -> bool:
        with open(log, "rb") as file:
            file.seek(size)
            return text.encode() in file.read()

    return has_come
