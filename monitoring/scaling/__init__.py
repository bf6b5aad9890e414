"""A scan: the same run with different numbers of replicas of a service, its speed-up and what limited it."""
