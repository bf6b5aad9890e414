"""Measure the CPU time of ``cpu_monitor.py record``, as a fraction of one core.

    python benchmarks/monitor_cost.py [--seconds 60] [--interval 1] [flags of cpu_monitor.py]

Services must run: under Compose, on Kubernetes or as processes. The CPU time
comes from ``wait4``. Of two recordings, one is twice as long as the other: their
difference is the cost of recording without the start of Python and the summary.
The exit code is 1 if the cost is 2 % or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.02


def cpu_seconds(duration_s: float, flags: list[str], output: Path) -> float:
    """Return user and system seconds of one recording, including child processes."""
    process = subprocess.Popen(  # noqa: S603  a fixed command
        [
            sys.executable,
            "common/cpu_monitor.py",
            "record",
            "--duration",
            str(duration_s),
            *flags,
            "--output",
            str(output),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"monitor_cost.py: the monitor ended with exit code {process.returncode}")
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the longer recording (default: 60)")
    parser.add_argument("--interval", default="1", help="the monitor's interval in seconds (default: 1)")
    arguments, flags = parser.parse_known_args()
    flags += ["--interval", arguments.interval]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "recording.csv"
        short = cpu_seconds(arguments.seconds / 2, flags, output)
        long = cpu_seconds(arguments.seconds, flags, output)
    cost = (long - short) / (arguments.seconds / 2)
    print(f"recording: {cost:.2%} of one core at {arguments.interval} s; starting and ending: {2 * short - long:.2f} s")
    return 0 if cost < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
