"""The statistical model of a run and its fit: signal strength, significance, limits, position of the peak."""
