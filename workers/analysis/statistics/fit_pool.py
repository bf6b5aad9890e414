"""Fits in a worker process, one after the other.

A fit is mostly Python code and would hold up the other runs if it ran in the
service's process. The worker process is started ahead, because importing pyhf
takes longer than a fit, and kept for the next fit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from common.worker_pool import WorkerPool
from physics import ANALYSES
from physics.files import with_code

log = logging.getLogger(__name__)

#: A fit takes less than a second, or several on a busy machine; one that takes longer than this is ended.
TIMEOUT_S = 600.0
#: A fit whose worker process exits, for example because it was killed, is done once more.
ATTEMPTS = 2


#: A fit as JSON, or else the reason why there is none.
FitAnswer = tuple[str | None, str | None]


@dataclass(frozen=True)
class FitOutcome:
    """A result document without its fit, and the fit, or the reason why there is none."""

    result: Mapping[str, Any]
    fit: Mapping[str, Any] | None
    problem: str | None


def import_fit() -> None:
    """Import what a fit needs."""
    import workers.analysis.statistics.fit  # noqa: F401


def fit_document(result: Mapping[str, Any]) -> FitAnswer:
    """Fit a result document, which has a workspace."""
    from threadpoolctl import threadpool_limits

    from workers.analysis.statistics.fit import fit_of
    from workers.analysis.statistics.minimisation.likelihood import FitError

    # The matrices are so small that several BLAS threads mostly wait for each other: 1.1 s of CPU instead of 0.35 s.
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            return json.dumps(fit_of(result), allow_nan=False), None
    except FitError as problem:
        return None, f"the fit does not converge: {problem}"


class FitPool:
    """Does fits in a worker process, in the order of the requests, and keeps their outcomes.

    ``function`` is what the worker process calls with a result document. Unless ``ahead``, the worker process is
    started with the first fit.
    """

    def __init__(
        self,
        function: Callable[[Mapping[str, Any]], FitAnswer] = fit_document,
        timeout_s: float = TIMEOUT_S,
        *,
        ahead: bool = True,
    ) -> None:
        self._function, self._ahead = function, ahead
        self._worker = WorkerPool(1, attempts=ATTEMPTS, prepare=import_fit, timeout_s=timeout_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fit")
        self._under_way: dict[str, Future[FitOutcome]] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._under_way

    def start(self) -> None:
        """Start the worker process, so that it is ready for the first fit; does nothing unless ``ahead``."""
        if not self._ahead:
            return
        try:
            self._worker.start()
        except OSError as error:
            log.error("fits will fail, because a worker process cannot be started: %s", error)

    def check_start(self) -> None:
        """Raise WorkerProcessError if the worker process exits whenever it is started."""
        self._worker.check_start()

    def submit(self, run_id: str, result: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Have a run's result document fitted, unless that is under way; ``then`` is called when it is done."""
        if run_id not in self._under_way:
            self._under_way[run_id] = outcome = self._thread.submit(self._fit, run_id, result)
            outcome.add_done_callback(lambda _: then())

    def outcomes(self) -> dict[str, FitOutcome]:
        """The fits that are done, by run; each until ``forget`` is called."""
        return {run_id: future.result() for run_id, future in self._under_way.items() if future.done()}

    def forget(self, run_id: str) -> None:
        """Keep a run's outcome no longer."""
        del self._under_way[run_id]

    def close(self) -> None:
        """End the worker process and the fit under way."""
        self._worker.close()
        self._thread.shutdown(cancel_futures=True)

    def _fit(self, run_id: str, result: Mapping[str, Any]) -> FitOutcome:
        try:
            fit, problem = self._worker.call(with_code, ANALYSES.code_of_result(result), self._function, result)
        except Exception as error:  # whatever went wrong, the run ends without a fit and says so
            log.error("the fit of run %s failed: %s", run_id, error)
            return FitOutcome(result, None, f"the fit failed: {error}")
        return FitOutcome(result, None if fit is None else json.loads(fit), problem)
