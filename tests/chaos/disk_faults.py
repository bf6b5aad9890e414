"""Faults of the disks that the services write to."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.environment import Environment, FollowedRun
from tests.chaos.fault import Fault, ServiceFault


@dataclass(frozen=True)
class FullDisk(ServiceFault):
    """No file of the service can grow, until ``log_text`` is in its log."""

    log_text: str = ""

    @property
    def kind(self) -> str:
        return f"disk full: {self.service}"

    @property
    def name(self) -> str:
        return self.kind

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        log = environment.workers.folder / f"{self.service}.log"
        limit = log.stat().st_size + 32 * 1024  # the log itself needs some room
        is_logged = appears_in(log, self.log_text)
        with environment.file_size_limit(self.service, limit):
            return run.wait_for(is_logged)


class FillDisk(Fault):
    """The database's file system is filled to the last byte; only where it is a separate one, which needs root."""

    kind = "file system full: analysis"

    def inject(self, environment: Environment, run: FollowedRun, rng: random.Random) -> bool:
        if not environment.workers.database.is_mount():
            return False
        is_logged = appears_in(environment.workers.folder / "analysis.log", "waits: the database")
        filler = environment.workers.database / "filler"
        try:
            with suppress(OSError), open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            return run.wait_for(is_logged)
        finally:
            filler.unlink()


def appears_in(log: Path, text: str) -> Callable[[], bool]:
    """A function that returns whether a text was written to a log since this call."""
    size = log.stat().st_size

    def has_appeared() -> bool:
        with open(log, "rb") as file:
            file.seek(size)
            return text.encode() in file.read()

    return has_appeared
