"""Apply the selection to the events of a chunk, and calculate their observables."""
