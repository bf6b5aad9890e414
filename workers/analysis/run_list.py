"""The list of runs, from the database of the analysis service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from common.errors import DamagedError
from common.messages import RunSummary
from workers.analysis.store import Run, Store

#: The number of runs that are listed.
MAX_LISTED = 1_000
#: The number of runs listed of those that failed before any message about them had settings.
MAX_REFUSED = 50


@dataclass(frozen=True)
class _Result:
    """The parts of a stored result that the list shows."""

    complete: bool
    problems: list[str]
    timing: dict[str, Any]
    fit: dict[str, Any] | None = None


def list_runs(store: Store, now: Callable[[Run], float], is_fitted: Callable[[str], bool]) -> tuple[RunSummary, ...]:
    """Return the latest runs, the newest first.

    ``now`` gives the time for a run that has not ended, in seconds since 1970, and ``is_fitted`` says whether it is
    being fitted.
    """
    return (*_refused(store), *_requested(store, now, is_fitted))


def _refused(store: Store) -> Iterator[RunSummary]:
    rows = store.database.rows(
        "SELECT run_id, problem FROM failures WHERE run_id NOT IN (SELECT run_id FROM requests) "
        "ORDER BY rowid DESC LIMIT ?",
        MAX_REFUSED,
    )
    for run_id, problem in rows:
        yield RunSummary(run_id, "failed", "", problem=problem)


def _requested(store: Store, now: Callable[[Run], float], is_fitted: Callable[[str], bool]) -> Iterator[RunSummary]:
    rows = store.database.rows(
        "SELECT run_id, digest, deleted, result, problem FROM requests "
        "LEFT JOIN runs USING (run_id) LEFT JOIN failures USING (run_id) ORDER BY requests.rowid DESC LIMIT ?",
        MAX_LISTED,
    )
    for run_id, digest, deleted, result, problem in list(rows):
        summary = RunSummary(run_id, "waiting", digest, problem=problem)
        try:
            run = store.run(run_id)
            if run is not None:
                summary = replace(
                    summary,
                    state="fitting" if is_fitted(run_id) else "running",
                    analysis=run.settings.analysis,
                    release=run.settings.release,
                    samples=len(run.settings.samples),
                    submitted=run.submitted,
                    seconds=max(0.0, now(run) - run.submitted),
                )
            if deleted:
                summary = replace(summary, state="cancelled" if store.is_cancelled(run_id) else "deleted", seconds=None)
            elif result is not None:
                summary = _with_result(summary, msgspec.json.decode(result, type=_Result))
            elif problem is not None:
                summary = replace(summary, state="failed", seconds=None)
        except (DamagedError, msgspec.MsgspecError) as error:
            summary = replace(summary, state="failed", problem=f"it is damaged in the database: {error}")
        yield summary


def _with_result(summary: RunSummary, result: _Result) -> RunSummary:
    fit = result.fit or {}
    return replace(
        summary,
        state="complete" if result.complete else "incomplete",
        seconds=result.timing["seconds"],
        signal_strength=fit.get("signal_strength"),
        signal_strength_error=fit.get("signal_strength_error"),
        problem=next(iter(result.problems), None),
    )
