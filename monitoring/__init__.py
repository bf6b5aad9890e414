"""What each service spends: sources of CPU counters, recordings of them, and their comparison."""
