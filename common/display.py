"""Show a run in a terminal: a progress bar for each stage, and above them the results when they arrive."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from common.delivery import DeadLetter
from common.messages import Stage
from common.progress import RunProgress
from common.rounding import number, rounded, rounded_yield

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Tables may be wider than the terminal, because a number must not be cut.
MAX_TABLE_WIDTH = 500
#: The width of a terminal whose width is not known.
DEFAULT_WIDTH = 80

_STAGES: Mapping[Stage, str] = {
    "plan": "files opened",
    "data-loader": "events loaded",
    "data-processor": "events processed",
    "analysis": "events analysed",
}


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by streams that raise no error, so that a run ends with its result written.

    A character that the encoding does not have is written as ``?``. After an error,
    for example of a closed pipe or a full disk, the stream discards what is written.
    """
    with redirect_stdout(_tolerant(sys.stdout)), redirect_stderr(_tolerant(sys.stderr)):
        yield


def _tolerant(stream: TextIO | None) -> TextIO:
    descriptor, encoding = -1, "utf-8"
    if stream is not None:  # it is None if it was closed when the program started
        try:
            descriptor, encoding = stream.fileno(), stream.encoding
        except OSError:  # a stream in memory
            return stream
    buffer = io.BufferedWriter(_TolerantFile(descriptor))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=True)


class _TolerantFile(io.RawIOBase):
    """Writes to a file descriptor, and discards everything after the first error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._failed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._descriptor < 0:  # multiprocessing passes the descriptor of sys.stderr on, unless this raises
            raise OSError("the stream was closed when the program started")
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        """Return the number of bytes written or discarded."""
        if not self._failed:
            try:
                return os.write(self._descriptor, data)
            except OSError:
                self._failed = True
        return len(memoryview(data))


def output_console() -> Console:
    """Return a console that writes to standard output."""
    console = Console(highlight=False, markup=False)
    if not console.width:  # COLUMNS=0, with which rich prints nothing
        console.width = DEFAULT_WIDTH
    return console


class Bars:
    """A progress bar for each stage, and the final result; a context manager."""

    def __init__(self, console: Console, samples: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<17}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks = {
            stage: self._progress.add_task(what, total=samples if stage == "plan" else None, note="")
            for stage, what in _STAGES.items()
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __rich__(self) -> RenderableType:
        return self._progress.get_renderable()

    def progress(self, run: RunProgress) -> None:
        """Update the bars. The total number of events is known once all files have been opened."""
        self.update(len(run.planned), run.total_events, {stage: done.events for stage, done in run.stages.items()})

    def update(self, samples_opened: int, total_events: int, events: Mapping[Stage, int]) -> None:
        """Update the bars with the events that each stage has finished."""
        self._progress.update(self._tasks["plan"], completed=samples_opened, note="")
        for stage, done in events.items():
            self._progress.update(self._tasks[stage], total=total_events if samples_opened else None, completed=done)

    def note(self, text: str) -> None:
        """Show what the run is doing or waiting for."""
        self._progress.update(self._tasks["plan"], note=text)

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the result above the bars."""
        self.fill(document)
        print_result(document, self._progress.console)

    def fill(self, document: Mapping[str, Any]) -> None:
        """Fill all bars if the run is complete; progress messages may have been lost with the connection."""
        if not document["complete"]:
            return
        samples = document["samples"]
        events = sum(sample["events_read"] for sample in samples.values())
        for stage, task in self._tasks.items():
            done = len(samples) if stage == "plan" else events
            self._progress.update(task, total=done, completed=done)


def print_result(document: Mapping[str, Any], console: Console) -> None:
    """Print the tables, the window, the fit and the warnings of a result; only warnings if no event was read."""
    if any(sample["events_read"] for sample in document["samples"].values()):
        for table in tables(document):
            print_table(table, console)
        for line in (*window_lines(document), fit_line(document)):
            console.print(Text(line), soft_wrap=True)
    for warning in document.get("warnings", []):
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def print_table(table: Table, console: Console) -> None:
    """Print a table, which may be wider than the terminal."""
    table.width = console.measure(table, options=console.options.update(width=MAX_TABLE_WIDTH)).maximum
    console.print(table, soft_wrap=True)


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the cutflow of each sample and the yields of each category as tables."""
    settings = result["settings"]
    steps = list(next(iter(result["samples"].values()))["cutflow"])
    lumi_ifb = settings["lumi"] * settings["fraction"]
    cutflow = _table(f"Cutflow, events ({result['title']}, {lumi_ifb:g} fb⁻¹)", "sample")
    for column in (*(step.replace("_", "\n") for step in steps), "yield", "±"):
        cutflow.add_column(column, justify="right", no_wrap=True)
    for name, sample in result["samples"].items():
        counts = [f"{sample['cutflow'][step]:,}" for step in steps]
        cutflow.add_row(name, *counts, *_yield(sample))
    yields = _table("Yields", "category")
    for column in ("selected", "yield", "±"):
        yields.add_column(column, justify="right", no_wrap=True)
    for name, category in result["categories"].items():
        yields.add_row(name, f"{category['events_selected']:,}", *_yield(category))
    return [cutflow, yields]


def window_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the events in the window around the signal, and the figures of S and B if a background is expected."""
    window = result["window"]

    def expected(name: str) -> str:
        return " ± ".join(rounded(window[name], window[f"{name}_error"]))

    lines = [
        f"{window['low']:g} to {window['high']:g} {window['unit']}".rstrip()
        + f": {window['n_data']:,} data events, {expected('n_signal_plus_background')} expected"
        + f" ({expected('n_signal')} signal, {expected('n_background')} background)"
    ]
    if window["significance"] is not None:
        lines.append(
            f"the notebook's figure N/√(B + 0.3·B²), N = S + B: {number(window['significance'], 3)}; "
            f"S/√B: {number(window['significance_s_b'], 3)}"
        )
    return lines


def fit_line(result: Mapping[str, Any]) -> str:
    """Return the signal strength and its significance, or why there is no fit, in one line."""
    fit = result["fit"]
    if fit is None:
        return f"no fit: {result.get('fit_problem') or 'not made'}"
    strength, error = rounded(fit["signal_strength"], fit["signal_strength_error"])
    line = f"signal strength {strength} ± {error}"
    if fit["significance_observed"] is None:
        return line
    observed, expected = fit["significance_observed"], fit["significance_expected"]
    return f"{line}; significance {observed:.2f} observed, {expected:.2f} expected"


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column(first, no_wrap=True)
    return table


def _yield(entry: Mapping[str, Any]) -> tuple[str, str]:
    return rounded_yield(entry["events_selected"], entry["yield"], entry["yield_error"])


def dead_letters_table(dead_letters: Sequence[DeadLetter]) -> Table:
    """Return a table with a row for each dead letter."""
    table = Table(title="Dead letters", box=SIMPLE_HEAD)
    for heading in ("queue", "run", "sample", "entries", "kind"):
        table.add_column(heading, overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("died (UTC)")
    table.add_column("reason", overflow="fold", ratio=1)
    for dead_letter in dead_letters:
        entries = "" if dead_letter.start is None else f"{dead_letter.start}:{dead_letter.stop}"
        cells = (
            dead_letter.queue,
            dead_letter.run_id,
            dead_letter.sample,
            entries,
            dead_letter.kind,
            str(dead_letter.size),
            dead_letter.died,
        )
        table.add_row(*(Text(cell or "") for cell in (*cells, dead_letter.problem)))
    return table
