"""Comparison of results: their numbers to the bit, what differs, and the one cause that reproduces all differences."""
