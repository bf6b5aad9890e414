"""How often and how long a download is tried."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts, delays, time-outs and the least rate of a download; all times in seconds.

    ``connect_timeout_s`` covers the connectivity check of a server, name look-up and all its
    addresses included; ``read_timeout_s`` is the longest wait for the next bytes. An attempt in which fewer
    than ``least_rate_bytes_per_s`` arrive, on average over ``least_rate_over_s``, has failed. All attempts together
    take at most ``total_s``. A delay that the server asks for is kept up to ``max_retry_after_s``.
    """

    attempts: int = 5
    first_delay_s: float = 1.0
    max_delay_s: float = 15.0
    max_retry_after_s: float = 120.0
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 30.0
    least_rate_bytes_per_s: float = 10_000.0
    least_rate_over_s: float = 30.0
    total_s: float = 7200.0
    retry_unreachable_after_s: float = 30.0

    def delay_s(self, failures: int, retry_after_s: float = 0.0) -> float:
        """Return the delay after so many failures: doubled each time up to the maximum, with jitter.

        It is at least what the server asked for, ``retry_after_s``, up to ``max_retry_after_s``.
        """
        backoff_s = self.first_delay_s * float(2 ** (failures - 1))
        jittered_s = min(backoff_s, self.max_delay_s) * random.uniform(0.5, 1.0)
        return max(jittered_s, min(retry_after_s, self.max_retry_after_s))


DEFAULT_POLICY = RetryPolicy()
