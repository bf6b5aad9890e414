"""What a worker process of an embedded run does: read a chunk, and select its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.delivery import Receipt
from common.messages import ChunkTask, Events, Message, Software, Span
from common.settings import Settings
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor


@dataclass(frozen=True)
class EncodedMessage:
    """A message that crosses from one process to another as its bytes."""

    route: str
    kind: str
    headers: Mapping[str, Any]
    body: bytes

    @classmethod
    def of(cls, message: Message) -> EncodedMessage:
        """Encode a message; raises MessageError where it is too large."""
        return cls(message.route, message.kind, message.headers, message.encode())

    def encode(self) -> bytes:
        """The message's body."""
        return self.body


def prepare() -> None:
    """Do nothing; a worker process that calls this has imported what it needs for chunks."""


def process_chunk(
    settings: Settings,
    task: bytes,
    before: Sequence[Span] = (),
    *,
    software: Software,
    published: float | None = None,
    redeliveries: int = 0,
) -> Sequence[EncodedMessage]:
    """Do an encoded chunk task as data-loader and data-processor do it; returns what they would publish.

    ``software`` is that of the command, ``before`` what happened to the chunk before, ``published`` when the task was
    published (seconds since 1970), and ``redeliveries`` how often it was delivered before. Raises MessageError where
    the task is not one or an outcome is too large.
    """
    # The other cores have worker processes of their own, so that this one decompresses without more threads.
    loader, processor = DataLoader(settings, decompression_threads=0), DataProcessor(settings)
    loader.software = processor.software = software
    loader.receipt = Receipt(published, redeliveries)
    outcome: list[EncodedMessage] = []
    for message in loader.read(ChunkTask.decode(task, loader.analyses), before):
        processed: Sequence[Message] = [message]
        if isinstance(message, Events):
            processor.receipt = Receipt()
            try:
                processed = processor.handle(message)
            except Exception:
                # Events that cannot be processed go to the data-processor service, which dead-letters them.
                processed = [message]
        outcome += map(EncodedMessage.of, processed)
    return outcome
