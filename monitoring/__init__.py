"""The CPU monitor: sources of CPU counters, recordings of them, and their comparison."""
