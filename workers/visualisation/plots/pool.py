"""A process pool that draws figures: matplotlib is not thread-safe, and drawing uses a whole core."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.errors import MessageError, PipelineError, WorkerProcessError
from common.worker_pool import WorkerPool, available_cores, default_processes
from physics import ANALYSES
from physics.files import with_code

log = logging.getLogger(__name__)

DPI = 150
#: A result has about fourteen figures: more processes would not draw them faster.
MAX_PROCESSES = 8
#: A figure whose worker process exits, for example because it was killed, is drawn once more.
ATTEMPTS = 2
#: The most characters of the reason why a figure cannot be drawn.
MAX_CAUSE = 500


#: The figures that are being drawn, by name: the files of each by name.
Drawings = Mapping[str, Future[dict[str, bytes]]]


class DrawingPool:
    """Draws figures in worker processes, by default ``default_processes`` and at most 8; any thread may call.

    The processes start with the first figure, or with ``start``. ``analyses`` is the directory of the users' own
    analyses.
    """

    def __init__(self, processes: int | None = None, analyses: Path | None = None) -> None:
        self._analyses = ANALYSES.in_folder(analyses, "visualisation")
        number = processes or min(default_processes(), MAX_PROCESSES)
        self._ahead = max(1, min(number, available_cores() - 1))
        self._workers = WorkerPool(number, attempts=ATTEMPTS, prepare=prepare)
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="drawing")
        self._threads_ahead = ThreadPoolExecutor(self._ahead, thread_name_prefix="drawing-ahead")

    def start(self) -> None:
        """Start worker processes, unless that was done; returns before they are ready.

        One core is left to the run; the last process starts with the figures.
        """
        try:
            self._workers.start(self._ahead)
        except OSError as error:
            log.warning("a worker process that draws figures cannot be started: %s", error)

    def draw(self, result: Mapping[str, Any], figures: Sequence[str]) -> Drawings:
        """Have figures of a result drawn as png and pdf, the first one first."""
        return {figure: self.submit(result, figure, ("png", "pdf"), DPI) for figure in figures}

    def draw_ahead(self, result: Mapping[str, Any], figures: Sequence[str]) -> Drawings:
        """Have figures drawn as ``draw`` does, but by the processes that ``start`` has started, which leave a core."""
        return {
            figure: self._threads_ahead.submit(self._draw_when_ready, result, figure, ("png", "pdf"), DPI)
            for figure in figures
        }

    def submit(
        self, result: Mapping[str, Any], figure: str, formats: Sequence[str], dpi: int
    ) -> Future[dict[str, bytes]]:
        """Have ``draw_files`` called in a worker process; the future raises WorkerProcessError as WorkerPool does."""
        return self._threads.submit(self._draw, result, figure, formats, dpi)

    def close(self) -> None:
        """End the worker processes; figures that are not finished are not drawn."""
        self._workers.close()
        for threads in (self._threads, self._threads_ahead):
            threads.shutdown(cancel_futures=True)

    def _draw_when_ready(
        self, result: Mapping[str, Any], figure: str, formats: Sequence[str], dpi: int
    ) -> dict[str, bytes]:
        self.start()
        self._workers.wait_until_ready()  # else another process is started for the call
        return self._draw(result, figure, formats, dpi)

    def _draw(self, result: Mapping[str, Any], figure: str, formats: Sequence[str], dpi: int) -> dict[str, bytes]:
        self._analyses.of_result(result)  # loads an own analysis, or raises SettingsError
        return self._workers.call(with_code, ANALYSES.code_of_result(result), draw_files, result, figure, formats, dpi)


def drawn(drawings: Drawings) -> tuple[dict[str, bytes], list[str]]:
    """Wait for figures; returns their files by name, and why other figures cannot be drawn.

    Raises MessageError if a histogram is not valid.
    """
    files: dict[str, bytes] = {}
    failed: dict[str, list[str]] = {}
    for figure, drawing in drawings.items():
        try:
            files |= drawing.result()
        except MessageError:
            raise
        except Exception as error:  # whatever went wrong, the result is written without the figure
            failed.setdefault(_cause(error), []).append(figure)
    return files, [
        f"{'figure' if len(names) == 1 else 'figures'} {', '.join(names)} cannot be drawn: {cause}"
        for cause, names in failed.items()
    ]


def prepare() -> None:
    """Draw an empty figure, so that the first one does not wait for imports and fonts."""
    import_figures()
    from matplotlib.figure import Figure

    from workers.visualisation.plots.stack import figure_bytes

    figure = Figure()
    figure.add_subplot().set_title("$m$")
    for kind in ("png", "pdf"):
        figure_bytes(figure, kind)


def import_figures() -> None:
    """Import what the figures and their files need; they are written to files, whatever MPLBACKEND is."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib cannot be imported with the name of a backend that it does not have
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf  # noqa: F401

    import workers.visualisation.plots.fit  # noqa: F401


def draw_files(result: Mapping[str, Any], figure: str, formats: Sequence[str], dpi: int) -> dict[str, bytes]:
    """Draw a figure of a result, either a histogram or a figure of the fit; returns its files by name."""
    import_figures()
    from workers.visualisation.plots.fit import draw_figure
    from workers.visualisation.plots.stack import figure_bytes

    drawn = draw_figure(result, figure)
    return {f"{figure}.{kind}": figure_bytes(drawn, kind, dpi) for kind in formats}


def _cause(error: Exception) -> str:
    """Return why a figure cannot be drawn, in one line."""
    if isinstance(error, WorkerProcessError):
        return f"{error}; drawing may need more memory"
    if isinstance(error, PipelineError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_CAUSE]
