"""How many worker processes are started by default: as many as the cores and the memory allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import memory, worker_pool
from common.memory import memory_bytes
from common.worker_pool import default_processes

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "gib", "processes"), [(32, 64, 32), (32, 16, 32), (32, 8, 16), (32, 0.5, 1), (2, 16, 2), (1, 0.25, 1)]
)
def test_many_cores_with_little_memory_start_few_processes(
    cores: int, gib: float, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "available_cores", lambda: cores)
    monkeypatch.setattr(worker_pool, "memory_bytes", lambda: int(gib * GIB))
    assert default_processes() == processes


def test_the_memory_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMIT_FILES", (tmp_path / "missing", limit))
    whole = memory_bytes()
    assert whole > 0
    limit.write_text("max\n")
    assert memory_bytes() == whole
    limit.write_text("1048576\n")
    assert memory_bytes() == 1048576
