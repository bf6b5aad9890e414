"""What ``import analysis`` offers to Python: run an analysis, submit one to a broker, load a result."""

from workers.client.result import Result, load
from workers.client.runs import IncompleteRunError, SubmittedRun, run, submit

__all__ = ["IncompleteRunError", "Result", "SubmittedRun", "load", "run", "submit"]
