"""Adds up histograms and cutflows until a run is whole."""
