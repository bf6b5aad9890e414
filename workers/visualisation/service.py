"""The visualisation service: draws a finished run, and writes and publishes its result folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from common import topology
from common.errors import MessageError, Unavailable
from common.messages import Fetching, Folder, Message, Progress, Result, RunFailed
from common.result_folder import write_folder
from common.service import Service
from common.settings import Settings
from common.topology import Queue
from workers.visualisation.folder import result_files


class Visualisation(Service):
    """Makes a result folder of every final result; ``output`` None only publishes it."""

    name: ClassVar[str] = "visualisation"
    consumes: ClassVar[Sequence[Queue]] = (topology.VISUALISATION,)

    def __init__(self, settings: Settings, *, keep: bool = True) -> None:
        self._output: Path | None = settings.output if keep else None

    def handle(self, message: Message) -> Sequence[Message]:
        """Draw and write a final result; progress and partial results need nothing here."""
        match message:
            case Result(run_id, final=True, result=result):
                files = result_files(result)
                if self._output is not None:
                    try:
                        write_folder(files, self._output, run_id)
                    except OSError as error:
                        raise Unavailable(f"{self._output / run_id} cannot be written: {error}") from error
                return [Folder(run_id, files)]
            case Result() | Progress() | Fetching() | RunFailed():
                return []
        raise MessageError(f"the visualisation has no use for a {message.kind} message")
