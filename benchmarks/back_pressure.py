"""Whether a run waits, and fills neither broker nor loader, while nobody processes its events.

    python -m benchmarks.back_pressure [--events 20000000] [--held 30] [--cache DIR]

A run of that many toy events is submitted with no data-processor there. Once the queue ``events`` is full it is left
so for ``--held`` seconds; then a data-processor is started, and the run has to complete. Exit code 1 where the broker
reaches 512 MiB or the loader 1 GiB at any time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.scaling import peaks_of
from benchmarks.stack import DEMO, Stack, final_result, near_broker, toy_release
from common import topology
from common.settings import RunSettings
from common.submission import new_run_id, submit
from common.transport.rabbitmq import RabbitMQTransport
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

LIMITS_MIB = {"rabbitmq": 512, "data-loader": 1024}
FULL_DEADLINE_S = 300.0


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.back_pressure", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--held", type=float, default=30.0, help="seconds without a processor (default: 30)")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="where the toy release is kept")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    toy_release(arguments.events, cache)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        (folder / "cache").symlink_to(cache)
        broker = held.enter_context(near_broker(folder))
        vhost = broker.new_vhost()
        workers = Workers(vhost, folder)
        held.callback(workers.stop)
        for service in ("data_loader", "analysis", "visualisation"):
            workers.start(service)
        services = Stack(broker, vhost, workers)
        peaks = held.enter_context(peaks_of(services))
        run_id = new_run_id(DEMO.name)
        session = RabbitMQTransport(vhost).open([topology.follower(run_id)], prefetch=100)
        held.callback(session.close)
        submit(session, run_id, RunSettings(release=DEMO.name, demo_events=arguments.events))

        def waiting() -> int:
            return int(broker.api("GET", f"queues/{vhost.vhost}/{topology.EVENTS.name}").get("messages", 0))

        limit = topology.EVENTS.limit or 0
        wait_until(lambda: waiting() >= limit, "the queue events was full", FULL_DEADLINE_S)
        time.sleep(arguments.held)
        print(f"held for {arguments.held:g} s with {waiting()} messages in {topology.EVENTS.name} (limit {limit})")
        started = time.perf_counter()
        workers.start("data_processor")
        result = final_result(session, run_id)
        read = sum(sample["events_read"] for sample in result["samples"].values())
        print(f"then {read:,} events in {time.perf_counter() - started:.1f} s, complete: {result['complete']}")
    mib = {name: peak / 2**20 for name, peak in peaks.items()}
    print("most memory: " + ", ".join(f"{name} {used:.0f} MiB" for name, used in mib.items()))
    return 1 if any(mib[name] >= most for name, most in LIMITS_MIB.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
