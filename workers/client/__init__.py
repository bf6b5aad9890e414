"""What ``import analysis`` offers to Python: run an analysis, submit one to a broker, load a result."""

import logging

from workers.client.result import Result, load
from workers.client.runs import IncompleteRunError, SubmittedRun, run, submit

__all__ = ["IncompleteRunError", "Result", "SubmittedRun", "load", "run", "submit"]

# Log records are shown by programs that configure logging; errors are raised.
for _name in ("common", "physics", "workers", "pika"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
