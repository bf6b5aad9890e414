"""The words of ``analysis.py``: a module a word, with a function that takes its arguments and returns the exit code."""
