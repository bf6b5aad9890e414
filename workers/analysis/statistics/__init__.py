"""The statistical model of a run and its fit: signal strength, significance, limits, mass of the Higgs boson."""
