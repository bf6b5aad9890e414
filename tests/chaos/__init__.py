"""Injects faults into runs, chosen by a seed, and checks what must hold after each run."""
