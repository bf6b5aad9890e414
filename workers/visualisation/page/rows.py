"""The rows of the list of runs: what it shows of a finished or failed run, and how it is sorted and filtered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from workers.visualisation.archive import Entry
from workers.visualisation.page.document import Document, peak
from workers.visualisation.page.live import LiveRun
from workers.visualisation.page.partial import partial_document

#: A measured value, and its uncertainty if that is known.
Measured = tuple[float, float | None]


@dataclass(frozen=True)
class Row:
    """A finished or failed run in the list; None stands for what is not known.

    ``state`` is complete, incomplete, failed or cancelled; ``finished_s`` is in seconds since 1970. ``analysis`` is
    the name of a user's own analysis, else empty. ``strength`` is the signal strength, ``position`` that of the fitted
    peak, in ``unit``.
    """

    run_id: str
    state: str
    finished_s: float | None = None
    problem: str | None = None
    is_toy: bool = False
    warnings: int = 0
    analysis: str = ""
    release: str = ""
    lumi_ifb: float | None = None
    samples: int = 0
    pt_cuts: tuple[float, ...] = ()
    events: int = 0
    strength: Measured | None = None
    position: Measured | None = None
    unit: str = ""

    @property
    def text(self) -> str:
        """The words that the filter searches."""
        words = (self.run_id, self.state, self.analysis, self.release, "toy" if self.is_toy else "")
        return " ".join(words).lower()


#: What the list can be sorted by; runs that do not have it come last.
SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "run": lambda row: row.run_id,
    "state": lambda row: row.state,
    "release": lambda row: (row.release, row.analysis) if row.release else None,
    "samples": lambda row: row.samples or None,
    "cuts": lambda row: row.pt_cuts or None,
    "strength": lambda row: row.strength and row.strength[0],
    "mass": lambda row: row.position and row.position[0],
    "events": lambda row: row.events or None,
    "finished": lambda row: row.finished_s,
}


def row(entry: Entry, document: Document) -> Row:
    """Return the row of a finished run."""
    try:
        finished_s = datetime.fromisoformat(document.timing.finished).timestamp()
    except ValueError:
        finished_s = entry.written_ns / 1e9
    return _row(entry.run_id, "complete" if document.complete else "incomplete", finished_s, document)


def failed_row(run: LiveRun) -> Row:
    """Return the row of a run that failed or was cancelled."""
    return _row(run.run_id, run.state, None, partial_document(run), run.problem)


def _row(run_id: str, state: str, finished_s: float | None, document: Document, problem: str | None = None) -> Row:
    cuts = document.settings.get("pt_cuts")
    numbers = all(isinstance(cut, int | float) for cut in cuts) if isinstance(cuts, list | tuple) else False
    found = peak(document)
    fit = document.fit or {}
    strength, error = (fit.get(name) for name in ("signal_strength", "signal_strength_error"))
    return Row(
        run_id,
        state,
        finished_s,
        problem or next(iter(document.problems), None),
        is_toy=document.is_toy,
        warnings=len(document.warnings),
        analysis=document.own_analysis,
        release=document.release,
        lumi_ifb=document.lumi_ifb,
        samples=len(document.samples),
        pt_cuts=tuple(cuts) if cuts and numbers else (),
        events=document.events_read,
        strength=(strength, error if isinstance(error, int | float) else None)
        if isinstance(strength, int | float)
        else None,
        position=None if found is None else found[1:3],
        unit="" if found is None else found[3],
    )


def matching(rows: Sequence[Row], query: str) -> list[Row]:
    """Return the rows that have every word of the query."""
    words = query.lower().split()
    return [row for row in rows if all(word in row.text for word in words)]


def in_order(rows: Sequence[Row], sort: str, *, descending: bool) -> list[Row]:
    """Return the rows sorted by a key of SORT_KEYS; those that do not have it come last, in the order given."""
    key = SORT_KEYS[sort]
    known = [row for row in rows if key(row) is not None]
    return [*sorted(known, key=key, reverse=descending), *(row for row in rows if key(row) is None)]
