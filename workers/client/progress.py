"""Progress bars for a run that Python code waits for, in a terminal or in a notebook."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.jupyter import JupyterMixin

from common.display import Bars
from common.messages import Stage
from common.progress import RunProgress

#: The shortest time between two updates in a notebook, in seconds.
UPDATE_S = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    ``samples_opened`` of the ``samples`` have been opened, and ``total_events`` of these will be read. ``events`` has
    the number of events that each stage has finished: data-loader, data-processor, analysis. ``note`` says what the
    run is doing besides, or waiting for.
    """

    samples: int
    samples_opened: int = 0
    total_events: int = 0
    events: Mapping[Stage, int] = field(default_factory=dict)
    note: str = ""


class NoBars:
    """Shows nothing; a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""

    def progress(self, run: RunProgress) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def result(self, document: Mapping[str, Any]) -> None:
        """Do nothing."""

    def show(self, progress: Progress) -> None:
        """Do nothing."""


class TerminalBars(Bars):
    """The bars of the command without its tables: the caller gets the result."""

    def result(self, document: Mapping[str, Any]) -> None:
        """Fill the bars."""
        self.fill(document)

    def show(self, progress: Progress) -> None:
        """Update the bars."""
        self.update(progress.samples_opened, progress.total_events, progress.events)
        self.note(progress.note)


class NotebookBars(JupyterMixin, TerminalBars):
    """The bars as the output of a notebook's cell.

    rich shows live bars in a notebook only if ipywidgets is installed, and those are not saved with the notebook; a
    display of IPython is updated here instead.
    """

    def __enter__(self) -> Self:
        from IPython.display import DisplayHandle

        self._next_update = 0.0
        self._output = DisplayHandle()
        self._output.display(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.update(self)

    def progress(self, run: RunProgress) -> None:
        """Update the bars."""
        super().progress(run)
        self._update()

    def note(self, text: str) -> None:
        """Show what the run is doing or waiting for."""
        super().note(text)
        self._update()

    def _update(self) -> None:
        if time.monotonic() >= self._next_update:
            self._output.update(self)
            self._next_update = time.monotonic() + UPDATE_S


def progress_bars(samples: int, *, wanted: bool) -> NoBars | TerminalBars:
    """Return the bars for a run of so many samples: none if not wanted, or if standard error is not a terminal."""
    console = Console(stderr=True, highlight=False, markup=False)
    if wanted and console.is_jupyter:
        return NotebookBars(console, samples)
    return TerminalBars(console, samples) if wanted and console.is_terminal else NoBars()
