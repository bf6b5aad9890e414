"""How the services and the command log."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str) -> None:
    """Log to standard error, one line a record. pika's own records are shown at level DEBUG only.

    Those of requests and urllib3 are never shown: they contain addresses with tokens, and text from servers.
    """
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pika").setLevel(logging.CRITICAL if level != "DEBUG" else logging.INFO)
    for name in ("requests", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
