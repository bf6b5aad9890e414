"""Show a run in a terminal: a progress bar for each stage, and above them the results when they arrive."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from common.errors import SettingsError
from common.interrupts import program
from common.names import plain_text
from common.rounding import duration, number, rounded_yield, with_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from common.analyses import Analyses, Analysis
    from common.delivery import DeadLetter
    from common.messages import Stage
    from common.progress import RunProgress

#: Tables may be wider than the terminal, because a number must not be cut.
MAX_TABLE_WIDTH = 500
#: The width of a terminal whose width is not known.
DEFAULT_WIDTH = 80

#: How characters are written that the encoding of the terminal does not have.
_SPELLINGS: Mapping[str, str] = {
    "±": "+-", "−": "-", "–": "-", "…": "...", "⁻": "^-", "¹": "1", "²": "^2", "√": "sqrt", "·": "*", "→": "->",
    "μ": "mu", "\N{COMBINING MACRON}": "",
}  # fmt: skip

_STAGES: Mapping[Stage, str] = {
    "plan": "files opened",
    "data-loader": "events loaded",
    "data-processor": "events processed",
    "analysis": "events analysed",
}


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by streams that raise no error, so that a run ends with its result written.

    A character that the encoding does not have is spelled, for example ``+-``, or written as ``?``. After an
    error, for example of a closed pipe or a full disk, the stream discards what is written.
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
    return io.TextIOWrapper(buffer, encoding=encoding, errors="spelled", line_buffering=True)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLINGS.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("spelled", _spell)


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


def output_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that writes texts as they are to standard output or standard error."""
    console = Console(highlight=False, markup=False, emoji=False, stderr=stderr, quiet=quiet)
    if not console.width:  # COLUMNS=0, with which rich prints nothing
        console.width = DEFAULT_WIDTH
    return console


def print_problem(text: str) -> None:
    """Print what went wrong on standard error, after the name of the command."""
    for line in text.splitlines():
        print(f"{program()}: {line}", file=sys.stderr)


class _Progress(Progress):
    """Progress bars, with a line below them for what the run is doing or waiting for."""

    def __init__(self, console: Console) -> None:
        self.note = Spinner("line", Text())
        super().__init__(
            TextColumn("{task.description:<17}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),  # the only one that becomes narrower
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return the bars and the note."""
        yield self.make_tasks_table(self.tasks)
        if self.note.text:
            yield self.note


class Bars:
    """A progress bar for each stage, and the final result; a context manager.

    Parameters
    ----------
    console
        Where to print. The bars are shown in a terminal only, and are removed at the end.
    samples
        The number of samples of the run; None if it is not known.
    analyses
        Where the labels of the result are looked up; by default names are shown.
    files
        What the first bar counts.
    from_submission
        Whether the run was submitted just now; otherwise only the times that its result has are printed.
    """

    def __init__(
        self,
        console: Console,
        samples: int | None,
        analyses: Analyses | None = None,
        *,
        files: str = "files opened",
        from_submission: bool = True,
    ) -> None:
        self._progress = _Progress(console)
        self._analyses, self._samples, self._from_submission = analyses, samples, from_submission
        self._printed: tuple[float, Mapping[str, Any]] | None = None
        self._started_s, self._files_s = time.monotonic(), 0.0
        self._tasks = {
            stage: self._progress.add_task(what, total=samples if stage == "plan" else None)
            for stage, what in {**_STAGES, "plan": files}.items()
        }

    def __enter__(self) -> Self:
        if self._progress.console.is_interactive:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.console.is_interactive:
            self._progress.stop()
        if error is None and self._printed is not None:
            since, document = self._printed
            measured = (self._files_s, time.monotonic() - since) if self._from_submission else (None, None)
            self._progress.console.print(duration_line(document, *measured))

    def __rich__(self) -> RenderableType:
        return self._progress.get_renderable()

    def progress(self, run: RunProgress) -> None:
        """Update the bars. The total number of events is known once all files have been opened."""
        self.update(len(run.planned), run.total_events, {stage: done.events for stage, done in run.stages.items()})

    def update(self, samples_opened: int, total_events: int, events: Mapping[Stage, int]) -> None:
        """Update the bars with the events that each stage has finished."""
        all_opened = samples_opened == self._samples
        if all_opened and not self._files_s:
            self._files_s = time.monotonic() - self._started_s
        self.note("fitting" if all_opened and events["analysis"] == total_events else "")
        self._progress.update(self._tasks["plan"], completed=samples_opened)
        for stage, done in events.items():
            self._progress.update(self._tasks[stage], total=total_events if samples_opened else None, completed=done)

    def note(self, text: str) -> None:
        """Show what the run is doing or waiting for."""
        self._progress.note.update(text=Text(text))

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the result above the bars."""
        self.fill(document)
        print_result(document, self._progress.console, self._analyses)
        self._printed = time.monotonic(), document

    def fill(self, document: Mapping[str, Any]) -> None:
        """Fill all bars if the run is complete; progress messages may have been lost with the connection."""
        if not document["complete"]:
            return
        samples = document["samples"]
        events = sum(sample["events_read"] for sample in samples.values())
        for stage, task in self._tasks.items():
            done = len(samples) if stage == "plan" else events
            self._progress.update(task, total=done, completed=done)


def print_result(document: Mapping[str, Any], console: Console, analyses: Analyses | None = None) -> None:
    """Print the tables, the window, the fit and the warnings of a result; only warnings if no event was read."""
    analysis = analysis_of(document, analyses)
    if any(sample["events_read"] for sample in document["samples"].values()):
        for table in tables(document, analysis):
            print_table(table, console)
        for line in (*window_lines(document), fit_line(document), *mass_lines(document, analysis)):
            console.print(Text(line), soft_wrap=True)
    for warning in document.get("warnings", []):
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def analysis_of(document: Mapping[str, Any], analyses: Analyses | None) -> Analysis | None:
    """Return the analysis of a result; None if it is not among these."""
    try:
        return None if analyses is None else analyses.of_result(document)
    except SettingsError:
        return None


def print_table(table: Table, console: Console) -> None:
    """Print a table without cutting anything; in a terminal that is too narrow, in parts below each other."""
    for part in _parts(table, console) if console.is_terminal else [table]:
        part.width = _width(part, console)
        console.print(part, soft_wrap=True)


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=MAX_TABLE_WIDTH)).maximum


def _parts(table: Table, console: Console) -> list[Table]:
    """Divide a table into some that fit into the terminal, each with the first column; ± stays with its number."""
    first, *others = table.columns
    units: list[list[Column]] = []
    for column in others:
        if column.header == "±":
            units[-1].append(column)
        else:
            units.append([column])
    parts: list[list[Column]] = []
    for unit in units:
        if not parts or _width(_of_columns(table, [first, *parts[-1], *unit]), console) > console.width:
            parts.append([])
        parts[-1] += unit
    if len(parts) <= 1:
        return [table]
    return [_of_columns(table, [first, *columns]) for columns in parts]


def _of_columns(table: Table, columns: Sequence[Column]) -> Table:
    part = new_table(str(table.title or ""))
    for column in columns:
        part.add_column(column.header, justify=column.justify, no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


def tables(result: Mapping[str, Any], analysis: Analysis | None = None) -> list[Table]:
    """Return the cutflow of each sample and the yields of each category as tables.

    Categories have their labels in the analysis; without one, their names.
    """
    settings = result["settings"]
    steps = list(next(iter(result["samples"].values()))["cutflow"])
    lumi_ifb = settings["lumi"] * settings["fraction"]
    cutflow = new_table(f"Cutflow, events ({result['title']}, {lumi_ifb:g} fb⁻¹)")
    cutflow.add_column("sample", no_wrap=True)
    for column in (*map(_heading, steps), "yield", "±"):
        cutflow.add_column(column, justify="right", no_wrap=True)
    for name, sample in result["samples"].items():
        counts = [f"{sample['cutflow'][step]:,}" for step in steps]
        cutflow.add_row(name, *counts, *_yield(sample))
    labels = {category.name: category.text for category in analysis.categories} if analysis else {}
    yields = new_table("Yields")
    yields.add_column("category", no_wrap=True)
    for column in ("selected", "yield", "±"):
        yields.add_column(column, justify="right", no_wrap=True)
    for name, category in result["categories"].items():
        yields.add_row(labels.get(name, name), f"{category['events_selected']:,}", *_yield(category))
    return [cutflow, yields]


def _heading(step: str) -> str:
    return "\n".join("pT" if word == "pt" else word for word in step.split("_"))


def window_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the events in the window around the signal, and the figures of S and B if a background is expected.

    What the run has no sample of is left out.
    """
    window = result["window"]

    def expected(name: str) -> str | None:
        value = window.get(name)
        return None if value is None else with_error(value, window.get(f"{name}_error"))

    data = window.get("n_data")
    found = {
        "observed": None if data is None else f"{data:,}",
        "expected": expected("n_signal_plus_background"),
    }
    parts = {"signal": expected("n_signal"), "background": expected("n_background")}
    lines = [
        f"{window['low']:g} to {window['high']:g} {window['unit']}".rstrip()
        + f": {', '.join(f'{text} {what}' for what, text in found.items() if text is not None) or 'no sample'}",
        ", ".join(f"expected {what} {text}" for what, text in parts.items() if text is not None),
    ]
    if window["significance"] is not None:
        lines.append(
            f"the notebook's figure N/√(B + 0.3·B²), N = S + B: {number(window['significance'], 3)}; "
            f"S/√B: {number(window['significance_s_b'], 3)}"
        )
    return [line for line in lines if line]


def fit_line(result: Mapping[str, Any]) -> str:
    """Return the signal strength and its significance, or why there is no fit, in one line."""
    fit = result["fit"]
    if fit is None:
        return f"no fit: {result.get('fit_problem') or 'not made'}"
    error = fit["signal_strength_error"]
    line = f"signal strength μ = {with_error(fit['signal_strength'], error)}"
    if error is None:
        line += ", an end of its range: no measurement"
    if fit["significance_observed"] is None:
        return line
    observed, expected = fit["significance_observed"], fit["significance_expected"]
    return f"{line}; significance {observed:.2f} observed, {expected:.2f} expected"


def mass_lines(result: Mapping[str, Any], analysis: Analysis | None) -> list[str]:
    """Return a line with the measured position of the peak, or why it was not measured, if the fit measures one."""
    peak = analysis.model.peak if analysis else None
    fit = result["fit"] or {}
    if not (analysis and peak):
        return []
    if peak.name not in fit:
        problem = fit.get(f"{peak.name}_problem")
        return [f"{peak.caption}: no measurement: {problem}"] if problem else []
    measured = fit[peak.name]
    value, error = (measured[f"{name}{analysis.fitted.suffix}"] for name in ("value", "error"))
    if value is None:
        return [f"{peak.caption}: no measurement: {measured['problem']}"]
    line = f"{peak.caption}: {plain_text(peak.symbol)} = {with_error(value, error)} {analysis.fitted.unit}".rstrip()
    return [line if error is not None else f"{line}: {measured['problem']}"]


def duration_line(result: Mapping[str, Any], files_s: float | None, plots_s: float | None) -> str:
    """Return how long the parts of a run took: up to the last opened file, to the last event, the fit, the plots.

    ``files_s`` and ``plots_s`` are None where they were not measured.
    """
    timing = result["timing"]
    fit_s = timing.get("fit_seconds") or 0.0
    events_s = max(0.0, timing.get("seconds", 0.0) - (files_s or 0.0) - fit_s)
    parts = {"files and events": events_s} if files_s is None else {"files": files_s, "events": events_s}
    parts["fit"] = fit_s
    if plots_s is not None and result["settings"].get("plots"):
        parts["plots"] = plots_s
    return f"time: {', '.join(f'{what} {duration(seconds)}' for what, seconds in parts.items())}"


def new_table(title: str) -> Table:
    """Return a table without columns."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def _yield(entry: Mapping[str, Any]) -> tuple[str, str]:
    return rounded_yield(entry["events_selected"], entry["yield"], entry["yield_error"])


def dead_letter_lines(dead_letter: DeadLetter) -> list[str]:
    """Return what a dead letter is, and why it could not be handled, as two lines."""
    parts = [f"{dead_letter.queue}: {dead_letter.kind}"]
    if dead_letter.run_id is not None:
        parts.append(f"run {dead_letter.run_id}")
    if dead_letter.sample is not None:
        entries = "" if dead_letter.start is None else f" {dead_letter.start}:{dead_letter.stop}"
        parts.append(f"{dead_letter.sample}{entries}")
    parts.append(f"{dead_letter.size:,} bytes")
    if dead_letter.died is not None:
        parts.append(f"died {dead_letter.died}")
    return [", ".join(parts), f"  {dead_letter.problem}"]
