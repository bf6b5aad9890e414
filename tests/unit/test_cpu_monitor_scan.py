"""The CPU monitor's scan: speed-up, Amdahl's law and the limit of a run, found in a simulated queue."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring.__main__ import main
from monitoring.recording import Recording, RecordingFile
from monitoring.scaling import scan
from monitoring.scaling.scan import ScanPlan
from monitoring.scaling.speedup import Amdahl, ScanRun, points
from tests.support.cpu_recordings import T0, recording, run_monitor, sample

CHUNKS, ROOM = 200, 16


def simulated(work_s: Sequence[float], replicas: Sequence[int], chunks: int = CHUNKS) -> tuple[float, dict[str, float]]:
    """Return the seconds of a run and ``timing.waits``: three stages in a row, with ROOM in the queues between them.

    Each stage has a number of replicas, which need ``work_s`` for a chunk and wait until the next queue has room.
    """
    free = [[0.0] * number for number in replicas]
    begins: list[list[float]] = [[], [], []]
    waited, end = [0.0, 0.0, 0.0], 0.0
    for chunk in range(chunks):
        arrival = 0.0
        for stage, work in enumerate(work_s):
            begin = max(arrival, heapq.heappop(free[stage]))
            waited[stage] += begin - arrival
            begins[stage].append(begin)
            arrival = begin + work
            if stage < 2 and chunk >= ROOM:
                arrival = max(arrival, begins[stage + 1][chunk - ROOM])
            heapq.heappush(free[stage], arrival)
        end = max(end, arrival)
    steps = {step: chunks * work for step, work in zip(("read", "selected", "added"), work_s, strict=True)}
    queues = {f"waited in queue {queue}": s for queue, s in zip(("chunks", "events", "selected"), waited, strict=True)}
    return end, steps | queues


def recorded(
    processors: int,
    work_s: Sequence[float] = (0.05, 0.4, 0.1),
    noise: float = 0.0,
    host_cores: float = 1.0,
    digest: str = "d",
) -> Recording:
    """Return a recording of a simulated run, in which rabbitmq uses 0.2 cores, ``noise`` of it slower."""
    seconds, waits = simulated(work_s, (2, processors, 1))
    seconds *= 1 + noise
    rates = {"data-processor": 0.9, "rabbitmq": 0.2, "host": host_cores}
    samples = [sample(at, at * rate, name) for name, rate in rates.items() for at in (0.0, seconds + 10)]
    replicas = {"data-loader": 2, "data-processor": processors, "analysis": 1}
    run = {"run_id": "r", "complete": True, "events": 1_000_000, "seconds": seconds, "waits": waits, "digest": digest}
    run |= {"submitted": T0, "finished": T0 + seconds + 4, "analysed": T0 + seconds + 2, "replicas": replicas}
    return recording(samples, f"data-processor-{processors}", label="docker", cores=2, interval_s=1.0, run=run)


def scanned(processors: int, **changes: Any) -> ScanRun:
    return ScanRun.of(recorded(processors, **changes), "data-processor", processors)


def test_a_simulated_queue_gives_the_speed_up_and_the_stage_that_is_the_limit() -> None:
    found = points({number: [scanned(number)] for number in (4, 1, 2, 8)})
    assert [point.replicas for point in found] == [1, 2, 4, 8]
    assert [point.speed_up.mean for point in found] == pytest.approx([1, 2, 4, 4], rel=0.03)
    assert [point.efficiency.mean for point in found] == pytest.approx([1, 1, 1, 0.5], rel=0.03)
    assert found[0].limit.startswith("data-processor: ")
    assert "1 replica worked 100% of the time with 0.90 cores" in found[0].limit
    assert found[1].limit.startswith("data-processor: ")
    # Eight replicas are as fast as the analysis can be, before which messages wait now.
    assert found[3].limit.startswith("analysis: ")
    assert found[0].mean.waiting["selected"] < 1 < 10 < found[3].mean.waiting["selected"]


def test_the_first_stage_is_the_limit_if_only_its_tasks_wait() -> None:
    limit = scanned(2, work_s=(0.4, 0.05, 0.05)).limit()
    assert limit.startswith("data-loader: ")
    assert "2 replicas worked 100% of the time" in limit


def test_the_machine_or_the_broker_is_the_limit_if_cpu_or_replicas_say_so() -> None:
    full = scanned(1, host_cores=1.95)
    assert full.limit() == "the machine: 1.95 of 2 cores were in use, most by data-processor 0.90 and rabbitmq 0.20"
    one = scanned(1)
    late = replace(one, working={**one.working, "data-processor": 0.3})
    assert late.limit().startswith("rabbitmq with 0.20 cores: for data-processor, ")


def test_amdahls_law_is_found_with_its_uncertainty() -> None:
    sigma, noises = 0.2, (-0.02, 0.0, 0.02)
    times = {n: 50 * (sigma + (1 - sigma) / n) for n in (1, 2, 4)}
    runs = {n: [replace(scanned(1), seconds=time * (1 + noise)) for noise in noises] for n, time in times.items()}
    measured = points(runs)
    law = Amdahl.fit(measured)
    assert law.serial_fraction.mean == pytest.approx(sigma, abs=0.005)
    assert law.serial_fraction.error is not None
    assert 0.005 < law.serial_fraction.error < 0.02
    assert law.seconds(4) == pytest.approx(20, rel=0.01)
    assert measured[1].speed_up.error == pytest.approx(measured[1].speed_up.mean * 0.02 / 3**0.5 * 2**0.5, rel=0.01)


def test_numbers_of_replicas_are_recorded_up_and_down_in_turn() -> None:
    plan = ScanPlan("docker", "data-processor", (1, 2, 4), 1000, 3)
    assert [number for _, number in plan.runs()] == [1, 2, 4, 4, 2, 1, 1, 2, 4]
    assert len(set(plan.runs())) == 9


def test_a_complete_scan_is_shown_without_recording_again(tmp_path: Path) -> None:
    for repetition in (1, 2):
        for number in (1, 2, 4):
            one = recorded(number, noise=0.01 * repetition)
            file = RecordingFile(tmp_path / "recordings" / f"data-processor-{number}-{repetition}.csv", one.header)
            file.add(one.samples)
            file.finish(one.header)
    flags = ("scan", "data-processor=4,1,2", "--events", "1000000", "--repeat", "2", "--output", str(tmp_path))
    shown = run_monitor(*flags)
    assert shown.returncode == 0, shown.stderr
    assert "with 1 × data-processor, the limit is data-processor: " in shown.stdout
    assert "Amdahl's law T(n) = T(1)·(σ + (1−σ)/n): σ = 0.0" in shown.stdout
    assert "the histograms of all 6 runs are identical to the last bit" in shown.stdout
    assert "## How it was made" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [point["replicas"] for point in written["points"]] == [1, 2, 4]
    assert written["points"][2]["speed_up"]["mean"] == pytest.approx(4, rel=0.05)
    assert written["tables"][0]["rows"][0][0] == "1"

    other = run_monitor(*flags[:2], "--events", "2000", "--output", str(tmp_path))
    assert other.returncode == 1
    line = f"--output {tmp_path} holds recordings with events 1000000; name another"
    assert other.stderr.splitlines() == [f"cpu_monitor.py: {line}"]


class Services:
    """Services of which only the number of replicas is known; runs fail while ``fails`` is True."""

    def __init__(self, replicas: int) -> None:
        self.number, self.log, self.done, self.fails = replicas, Path("x.log"), list[int](), False

    def start(self, flags: Sequence[str]) -> int:
        return 0

    run = start

    def replicas(self, service: str) -> int:
        return self.number

    def scale(self, service: str, replicas: int) -> None:
        self.number = replicas

    def record(self, _: object, path: Path, work: object) -> None:
        if self.fails and len(self.done) == 3:
            raise KeyboardInterrupt
        self.done.append(self.number)
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_an_interrupted_scan_leaves_the_replicas_as_before_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, said = Services(3), list[str]()
    monkeypatch.setattr(scan, "running_services", lambda *_: services)
    monkeypatch.setattr(scan, "record", services.record)
    one = scan.Scan(ScanPlan("docker", "data-loader", (1, 2), 1000, 2), "p", tmp_path, said.append)
    services.fails = True
    with pytest.raises(KeyboardInterrupt):
        one.record()
    assert services.number == 3
    assert said[-2:] == [
        f"to continue, repeat the command with --output {tmp_path}",
        "data-loader has 3 replicas again, as before",
    ]
    services.fails = False
    one.record()
    assert services.number == 3
    assert services.done == [1, 2, 2, 1]


@pytest.mark.parametrize(
    "given", ["analysis=1,2", "data-processor=0,1", "data-processor=2", "data-loader=1,x", "data-loader", "=1,2"]
)
def test_a_service_or_numbers_that_cannot_be_scanned_are_refused(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scan", given])
    assert ended.value.code == 2
    assert f"'{given}': write data-loader or data-processor=N,N,.." in capsys.readouterr().err
