"""Faults in the middle of runs, from a seed, and what must hold after each of them."""
