"""What the listeners of a service have in common: how many connections they may have open."""

from __future__ import annotations

import resource


def connection_limit(most: int) -> int:
    """Return how many connections a listener may have: ``most``, or half of the files this process may open if fewer.

    The rest is left to the service: its connection to the broker, its database and its worker processes.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // 2))
