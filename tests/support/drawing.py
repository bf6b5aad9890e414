"""A pool of processes that draw figures, shared by all tests of a test process."""

from workers.visualisation.plots.pool import DrawingPool

POOL = DrawingPool(2)
