"""Comparison of results: their numbers to the bit, what differs, and the one cause of differing yields and bins."""
