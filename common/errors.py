"""The errors of the pipeline: each names the thing, the value and the way out."""

from __future__ import annotations


class PipelineError(Exception):
    """Anything the pipeline reports to a person in words; the base of the tree."""


class SettingsError(PipelineError):
    """A setting has a value that cannot be used (exit code 2)."""


class MessageError(PipelineError):
    """A message cannot be decoded, or does not hold what its kind declares."""


class DataError(PipelineError):
    """A sample's file is missing, cannot be fetched, or does not hold what the release says."""


class FetchError(DataError):
    """A remote file could not be brought into the cache.

    Parameters
    ----------
    url
        The address that was tried.
    reason
        Why it failed, in words.
    unreachable
        True where the server itself could not be reached, so that other files
        of the same server would fail alike.
    """

    def __init__(self, url: str, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
        self.unreachable = unreachable


class BrokerError(PipelineError):
    """The broker refused something that waiting cannot mend (credentials, permissions, queue arguments)."""


class WorkerLost(PipelineError):  # noqa: N818  no error of the message in hand, which goes back to its queue
    """Who was to do the work has ended."""


class Unavailable(PipelineError):  # noqa: N818  no error, but a reason to wait
    """Something outside is away for now (a full disk, a locked database): the delivery is tried again."""
