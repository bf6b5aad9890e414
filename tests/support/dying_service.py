"""A service that is killed by every message of the sample VICTIM: ``python -m tests.support.dying_service``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import ClassVar

from common import topology
from common.messages import ChunkFailed, Message, RunFailed
from common.service import Service
from common.settings import Settings
from common.topology import Queue
from workers.process import main

VICTIM = "Zmumu"


class DyingService(Service):
    """Publishes RunFailed for every ChunkFailed; one of the sample VICTIM kills it, as running out of memory does."""

    name: ClassVar[str] = "dying"
    consumes: ClassVar[Sequence[Queue]] = (topology.PLANS, topology.EVENTS)

    def __init__(self, settings: Settings) -> None:
        """Ignore the settings."""

    def handle(self, message: Message) -> Sequence[Message]:
        assert isinstance(message, ChunkFailed)
        if message.chunk.sample == VICTIM:
            os.kill(os.getpid(), signal.SIGKILL)
        return [RunFailed(message.chunk.run_id, message.problem)]


if __name__ == "__main__":
    sys.exit(main(DyingService))
