"""The data-processor: selects the events of a chunk and calculates their observables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from common.errors import MessageError
from common.messages import Events, Message, Progress, Selected
from common.releases import Releases
from common.service import Service
from common.settings import Settings
from physics import RELEASES
from workers.data_processor.selection import select


class DataProcessor(Service):
    """Applies the charge and flavour cuts, and calculates masses and channels."""

    name: ClassVar[str] = "data-processor"
    releases: ClassVar[Releases] = RELEASES

    def __init__(self, settings: Settings) -> None:
        """Use no settings: the messages and the releases say everything."""

    def handle(self, message: Message) -> Sequence[Message]:
        """Select the events of a chunk."""
        if not isinstance(message, Events):
            raise MessageError(f"a data-processor has no use for a {message.kind} message")
        release = RELEASES[message.release]
        selected, cutflow = select(message.events, release)
        return [
            Selected(message.chunk, message.release, {**message.cutflow, **cutflow}, selected),
            Progress("data-processor", message.chunk),
        ]
