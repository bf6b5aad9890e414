"""Counter samples and recordings for tests, and the CPU monitor's command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from monitoring import usage
from monitoring.recording import RateCalculator, Recording
from monitoring.sources.base import CounterSample
from tests.support.paths import ROOT

T0 = 1_800_000_000.0
SCRIPT = [sys.executable, "common/cpu_monitor.py"]


def sample(at: float, cpu: float, service: str = "analysis", replica: str = "1", **more: Any) -> CounterSample:
    """A sample ``at`` seconds after T0, of a container that started at T0 unless ``started`` says otherwise."""
    started = T0 + more.pop("started", 0.0)
    return CounterSample(T0 + at, service, replica, f"{service}-{replica}", started, cpu, **more)


def recording(samples: Sequence[CounterSample], name: str = "a", **header: Any) -> Recording:
    rates = RateCalculator()
    return Recording(name, header, [rates.add_cores(one) for one in samples])


def run_monitor(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, without a Docker engine or cluster unless ``environment`` names one."""
    return subprocess.run(
        [*SCRIPT, *flags],
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "KUBECONFIG": "/nowhere", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def parts_and_host(recorded: Recording) -> tuple[float, float]:
    """CPU seconds of services, platform and rest together, and of the host, between two readings of the host."""
    found = usage.usage_by_service(recorded)
    window = found["host"].lifetimes[0].times[[0, -1]]
    used = {name: float(np.diff(one.used_at(window))[0]) for name, one in found.items()}
    host = used.pop("host")
    return sum(used.values()), host
