"""Processes that draw figures, which all tests of a test process use; they start with the first figure."""

from workers.visualisation.plots.pool import DrawingPool

POOL = DrawingPool(2)
