"""The analysis service: adds up histograms and cutflows of a run, and fits the result."""
