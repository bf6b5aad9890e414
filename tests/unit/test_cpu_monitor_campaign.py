"""The CPU monitor's campaign: its order, what is left to record, and the costs of idle services, runs and events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monitoring.__main__ import main
from monitoring.campaign.campaign import Plan
from monitoring.comparison.costs import Repetition, costs
from monitoring.recording import Recording, RecordingFile
from monitoring.sources.base import PIPELINE_SERVICES
from tests.support.cpu_recordings import T0, recording, run_monitor, sample

IDLE_CORES, FIXED_S, PER_MILLION_S, START_S = 0.02, 3.0, 1.5, 4.0
ROWS = (*PIPELINE_SERVICES, "platform", "rest", "host")


def recorded(name: str, seconds: float, events: int = 0, extra_s: float = 0.0, noise: float = 0.0) -> Recording:
    """A recording in which every row uses the known costs, ``noise`` of it more, and a run between its ends."""
    run = FIXED_S + PER_MILLION_S * events / 1e6 if events else 0.0
    times = np.linspace(0.0, seconds, 61)
    used = IDLE_CORES * times + (run + extra_s) * np.clip((times - 2) / (seconds - 4), 0, 1) * (1 + noise)
    samples = [
        sample(float(t), float(u), service, memory_bytes=1)
        for service in ROWS
        for t, u in zip(times, used, strict=True)
    ]
    summary = {"run_id": name, "complete": True, "events": events, "submitted": T0 + 2, "samples": {}}
    header = {"label": name.split("-")[0], "cores": 2, "interval_s": 1.0, "unseen": ["etcd: not reported"]}
    return recording(samples, name, **header, run=summary if events else None)


def repetition(kind: str, number: int) -> Repetition:
    noise = 0.1 * (number - 1)
    return Repetition(
        recorded(f"{kind}-{number}-idle", 20.0),
        recorded(f"{kind}-{number}-small", 30.0, 2_000_000, noise=noise),
        recorded(f"{kind}-{number}-large", 90.0, 20_000_000, noise=noise),
        recorded(f"{kind}-{number}-start", 25.0, 20_000, extra_s=START_S),
    )


def test_two_sizes_of_a_run_give_the_costs_of_a_run_and_of_an_event() -> None:
    found = {cost.service: cost for cost in costs({"docker": [repetition("docker", 1)]})}
    assert list(found) == [*PIPELINE_SERVICES, "all", "platform", "rest", "host"]
    one, total = found["analysis"], found["all"]
    assert one.idle_cores.mean == pytest.approx(IDLE_CORES)
    assert one.fixed_cpu_seconds.mean == pytest.approx(FIXED_S)
    assert one.per_million_events.mean == pytest.approx(PER_MILLION_S)
    assert one.start_cpu_seconds is not None
    assert one.start_cpu_seconds.mean == pytest.approx(START_S)
    assert one.fixed_cpu_seconds.error is None
    assert total.per_million_events.mean == pytest.approx(5 * PER_MILLION_S)


def test_repetitions_give_the_uncertainties_of_the_costs() -> None:
    found = costs({"docker": [repetition("docker", 1), repetition("docker", 2)]})
    assert found[0].per_million_events.mean == pytest.approx(1.05 * PER_MILLION_S)
    assert found[0].per_million_events.error == pytest.approx(0.05 * PER_MILLION_S)


def test_platforms_are_recorded_in_turn_and_each_comes_first_once() -> None:
    blocks = Plan(("process", "docker", "kubernetes"), (1, 2), 3, 60.0).blocks()
    assert [kind for _, kind in blocks[:4]] == ["process", "docker", "kubernetes", "docker"]
    assert {blocks[0][1], blocks[3][1], blocks[6][1]} == {"process", "docker", "kubernetes"}
    assert len(set(blocks)) == 9


def test_a_complete_campaign_is_compared_without_recording_again(tmp_path: Path) -> None:
    for kind in ("process", "docker"):
        for number in (1, 2):
            for one in vars(repetition(kind, number)).values():
                file = RecordingFile(tmp_path / "recordings" / f"{one.name}.csv", one.header)
                file.add(one.samples)
                file.finish(one.header)
    finished = run_monitor(
        "campaign", "--platforms", "process,docker", "--repeat", "2", "--output", str(tmp_path), COLUMNS="140"
    )
    assert finished.returncode == 0, finished.stderr
    assert "all: data-loader + data-processor + analysis + visualisation + rabbitmq" in finished.stdout
    page = (tmp_path / "comparison.md").read_text()
    assert "| data-loader | process | 0.020 ± 0.000 | 3.15 ± 0.15 | 1.58 ± 0.08 |" in page
    assert "--platforms process,docker --events 2000000 20000000 --repeat 2" in page
    assert "- not seen: docker: etcd: not reported" in page
    document = json.loads((tmp_path / "comparison.json").read_text())
    assert {row["service"] for row in document["rows"]} == {*ROWS, "all"}
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")

    other = run_monitor("campaign", "--events", "1000", "2000", "--output", str(tmp_path))
    assert other.returncode == 1
    line = f"--output {tmp_path} holds recordings with events [2000000, 20000000]; name another"
    assert other.stderr.splitlines() == [f"cpu_monitor.py: {line}"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--platforms", "docker,podman"], "podman is none of process, docker, kubernetes"),
        (["--events", "2000", "1000"], "--events 2000 1000: give the smaller number first"),
        (["--repeat", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_wrong_flags_of_a_campaign_are_named(
    flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["campaign", "--output", "x", *flags])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
