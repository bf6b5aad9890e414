"""How the loaders and the processors scale with their replicas, each held to a part of a core.

    python -m benchmarks.replicas [--cores 0.25] [--replicas 1 2 4] [--events 5000000] [--cache DIR] [--output FILE]

Loaders and processors are containers of the images (IMAGE_TAG) with a limit of CPU; broker, analysis and
visualisation are processes without one. The efficiency of N replicas is N times the time of one over N times their
own: 1 where nothing else is in the way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.contest import markdown, write
from benchmarks.releases import toy_release
from benchmarks.stack import Stack, wait_for_consumers
from common.settings import BrokerSettings, RunSettings
from tests.conftest import ROOT, Workers, running_broker


@contextmanager
def limited(service: str, vhost: BrokerSettings, cores: float, cache: Path) -> Iterator[None]:
    """One container of a service that may use so many cores."""
    variables = {
        "RABBITMQ_HOST": vhost.host,
        "RABBITMQ_PORT": vhost.port,
        "RABBITMQ_USER": vhost.user,
        "RABBITMQ_PASS": vhost.password,
        "RABBITMQ_VHOST": vhost.vhost,
        "CACHE": "/cache",
    }
    command = ["docker", "run", "--detach", "--rm", "--network", "host", "--cpus", str(cores)]
    command += ["--user", str(os.getuid()), "--volume", f"{cache}:/cache"]
    command += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    image = f"{service}:{os.environ.get('IMAGE_TAG', 'latest')}"
    container = subprocess.check_output([*command, image], text=True).strip()  # noqa: S603  our own image
    try:
        yield
    finally:
        stop = ["docker", "stop", "--time", "10", container]
        subprocess.run(stop, check=True, capture_output=True)  # noqa: S603  our own container


def seconds_of(replicas: int, arguments: argparse.Namespace, cache: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a run with so many loaders and processors, and the CPU seconds of what is not limited."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        broker = held.enter_context(running_broker(folder))
        vhost = broker.new_vhost()
        workers = Workers(vhost, folder)
        held.callback(workers.stop)
        workers.start("analysis")
        workers.start("visualisation")
        for _ in range(replicas):
            for service in ("data-loader", "data-processor"):
                held.enter_context(limited(service, vhost, arguments.cores, cache))
        wait_for_consumers(vhost)
        services = Stack(broker, vhost, workers)
        services.run(RunSettings(release="demo"))
        measured = services.run(RunSettings(release="demo", demo_events=arguments.events))
        return measured.seconds, {name: cpu for name, cpu in measured.cpu_seconds.items() if cpu}


def main() -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replicas", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--cores", type=float, default=0.25, help="what a loader or a processor may use")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="where the toy releases are kept")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "replicas.md")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    for events in (arguments.events, RunSettings(release="demo").demo_events):
        toy_release(events, cache)
    rows = [["loaders, processors", "s", "million events/s", "efficiency", "CPU cores of the others"]]
    first = 0.0
    for replicas in arguments.replicas:
        seconds, others = seconds_of(replicas, arguments, cache)
        first = first or seconds * replicas
        used = ", ".join(f"{name} {cpu / seconds:.2f}" for name, cpu in others.items())
        rate = arguments.events / seconds / 1e6
        rows.append([str(replicas), f"{seconds:.1f}", f"{rate:.2f}", f"{first / seconds / replicas:.2f}", used])
        print(" | ".join(rows[-1]), flush=True)
    write(
        arguments.output,
        [
            "# How loaders and processors scale with their replicas",
            f"{arguments.events:,} toy events; each loader and processor is a container held to {arguments.cores:g} "
            "cores. The efficiency of N is the time of one over N times theirs.",
            markdown(rows),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
