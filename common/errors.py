"""The errors of the pipeline. Each message says what happened, with which value, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path


class PipelineError(Exception):
    """Base class of the errors that are reported to a user as one line."""


class SettingsError(PipelineError):
    """A setting has a value that cannot be used (exit code 2)."""


class AnalysisError(SettingsError):
    """The file of a user's own analysis is missing, cannot be imported, or has a mistake; names the file and line."""


class RunError(PipelineError):
    """A run ended without a result, or with an incomplete one.

    Parameters
    ----------
    run_id
        The run.
    problem
        Why there is no complete result.
    """

    def __init__(self, run_id: str, problem: str) -> None:
        super().__init__(f"run {run_id} {problem}")
        self.run_id = run_id
        self.problem = problem


class ResultError(PipelineError):
    """A result folder or its result.json is missing or damaged, or a result does not have what was asked for."""


class MessageError(PipelineError):
    """A message cannot be decoded, or does not hold what its kind declares."""


class DataError(PipelineError):
    """A sample's file is missing, cannot be fetched, or does not hold what the release says."""


class FetchError(DataError):
    """A remote file could not be brought into the cache.

    Parameters
    ----------
    url
        The address of the file.
    reason
        Why the transfer failed, as text.
    unreachable
        True if the server could not be reached, so that its other files would
        fail in the same way.
    """

    def __init__(self, url: str, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
        self.unreachable = unreachable


class BrokerError(PipelineError):
    """The broker refused something that a retry cannot fix (credentials, permissions, queue arguments)."""


class DatabaseError(PipelineError):
    """The database of the analysis cannot be used any more, and a retry cannot fix that; the service stops."""


class DamagedError(DatabaseError):
    """The database holds something else than what was written to it."""


class WorkerProcessError(PipelineError):
    """A worker process of a process pool exited, could not start, or took too long."""


class Unavailable(PipelineError):  # noqa: N818  not an error, but a reason to wait
    """Something outside the service cannot be used for now (a full disk, a locked database), and is tried again."""


def missing_package(error: ModuleNotFoundError) -> str:
    """Return which package is not installed, and the command that installs all of them."""
    requirements = Path(__file__).resolve().parents[1] / "requirements.txt"
    command = f"{sys.executable} -m pip install -r {requirements}"
    return f"the package {error.name!r} is not installed; install all packages with: {command}"
