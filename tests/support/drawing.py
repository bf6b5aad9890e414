"""A pool of processes that draw figures, shared by all tests of a test process, and what it draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.visualisation import result_files
from workers.visualisation.plots.pool import DrawingPool

POOL = DrawingPool(2)


def all_files(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all files of a result folder."""
    drawings = POOL.draw(result, result_files.figures_of(result))
    return result_files.result_files(result, result_files.files_without_figures(result), drawings)
