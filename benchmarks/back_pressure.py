"""Check that a run waits without filling the memory of broker and loader while no data-processor runs.

    python -m benchmarks.back_pressure [--events 20000000] [--held 30] [--cache DIR]

A run of that many toy events is submitted while no data-processor runs. The queue ``events`` is kept full for
``--held`` seconds; then a data-processor is started, and the run has to complete. The exit code is 1 if the broker
reaches 512 MiB or the loader 1 GiB at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.scaling import peaks_of
from benchmarks.stack import DEMO, empty_stack, final_result, toy_release
from common import topology
from common.settings import RunSettings
from common.submission import new_run_id, submit
from common.transport.rabbitmq import RabbitMQTransport
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

LIMITS_MIB = {"rabbitmq": 512, "data-loader": 1024}
FULL_DEADLINE_S = 300.0


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.back_pressure", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--held", type=float, default=30.0, help="seconds without a processor (default: 30)")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache", help="directory of the toy release")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    toy_release(arguments.events, cache)
    with ExitStack() as held:
        services = held.enter_context(empty_stack(cache))
        broker, vhost = services.broker, services.vhost
        for service in ("data_loader", "analysis", "visualisation"):
            services.workers.start(service)
        peaks = held.enter_context(peaks_of(services))
        run_id = new_run_id(DEMO.name)
        session = RabbitMQTransport(vhost).open([topology.follower(run_id)], prefetch=100)
        held.callback(session.close)
        submit(session, run_id, RunSettings(release=DEMO.name, demo_events=arguments.events))

        def queue_depth() -> int:
            return int(broker.api("GET", f"queues/{vhost.vhost}/{topology.EVENTS.name}").get("messages", 0))

        limit = topology.EVENTS.limit or 0
        wait_until(lambda: queue_depth() >= limit, "the queue events was full", FULL_DEADLINE_S)
        time.sleep(arguments.held)
        print(f"held for {arguments.held:g} s with {queue_depth()} messages in {topology.EVENTS.name} (limit {limit})")
        started = time.perf_counter()
        services.workers.start("data_processor")
        result = final_result(session, run_id)
        read = sum(sample["events_read"] for sample in result["samples"].values())
        print(f"then {read:,} events in {time.perf_counter() - started:.1f} s, complete: {result['complete']}")
    mib = {name: peak / 2**20 for name, peak in peaks.items()}
    print("largest memory: " + ", ".join(f"{name} {used:.0f} MiB" for name, used in mib.items()))
    return 1 if any(mib[name] >= most for name, most in LIMITS_MIB.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
