"""A data-processor that every message of the sample VICTIM kills: ``python -m tests.support.dying_processor``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from common.messages import Events, Message
from common.service import main
from workers.data_processor.service import DataProcessor


class DyingProcessor(DataProcessor):
    """Dies as a process that runs out of memory does: at once, and without a word."""

    def handle(self, message: Message) -> Sequence[Message]:
        if isinstance(message, Events) and message.chunk.sample == os.environ["VICTIM"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().handle(message)


if __name__ == "__main__":
    sys.exit(main(DyingProcessor))
