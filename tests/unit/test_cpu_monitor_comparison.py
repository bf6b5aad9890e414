"""The CPU monitor's comparison of recordings: ratios, uncertainties, warnings, and the files it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitoring.comparison.comparability import warnings
from monitoring.comparison.compare import compare
from monitoring.recording import Recording, RecordingFile
from monitoring.sources.base import PIPELINE_SERVICES
from tests.support.cpu_recordings import T0, recording, run_monitor, sample


def run_of(events: int = 1_000_000, **more: Any) -> dict[str, Any]:
    run = {
        "run_id": "r",
        "release": "demo",
        "complete": True,
        "settings": {"lumi": 10, "fraction": 1.0, "pt_cuts": [20, 15, 10]},
        "samples": {"Zee": [events, 10]},
        "events": events,
        "submitted": T0 + 1,
        "digest": "d",
    }
    return {**run, **more}


def recording_of(label: str, number: int, seconds: float, step: float = 1.0, **header: Any) -> Recording:
    """A recording of 40 s in which each service uses ``seconds``, between 5 s and 25 s."""
    times = np.arange(0.0, 40.0 + step, step)
    used = seconds * np.clip((times - 5.0) / 20.0, 0.0, 1.0)
    samples = [
        sample(float(t), 100.0 + float(u) * (1 + index / 4), service, memory_bytes=50_000_000 * (index + 1))
        for index, service in enumerate(PIPELINE_SERVICES)
        for t, u in zip(times, used, strict=True)
    ]
    limits = {service: {"cores": None, "memory_bytes": 2**30} for service in PIPELINE_SERVICES}
    images = {service: {"name": f"{service}:latest", "id": f"sha256:{service}"} for service in PIPELINE_SERVICES}
    facts = {"label": label, "cores": 2, "limits": limits, "images": images, "run": run_of(), "interval_s": step}
    return recording(samples, f"{label}-{number}", **{**facts, **header})


def test_a_ratio_has_the_propagated_standard_errors() -> None:
    compose = [recording_of("compose", n, s) for n, s in enumerate((9.0, 10.0, 11.0))]
    kubernetes = [recording_of("kubernetes", n, s, 10.0) for n, s in enumerate((11.0, 12.0, 13.0))]
    comparison = compare([*compose, *kubernetes])
    row = comparison.row("data-loader", "kubernetes")
    assert row is not None
    assert row.ratio is not None
    assert row.cpu_seconds.mean == pytest.approx(12.0)
    assert row.cpu_seconds.error == pytest.approx(1 / math.sqrt(3))
    assert row.ratio.mean == pytest.approx(1.2)
    assert row.ratio.error == pytest.approx(1.2 * math.hypot(1 / math.sqrt(3) / 12, 1 / math.sqrt(3) / 10))
    assert comparison.window_s == 10.0
    assert comparison.warnings == []


def test_ratios_are_per_event_and_single_recordings_have_no_uncertainty() -> None:
    half = run_of(500_000)
    comparison = compare([recording_of("compose", 0, 10.0), recording_of("kubernetes", 0, 10.0, run=half)])
    row = comparison.row("all", "kubernetes")
    assert row is not None
    assert row.ratio is not None
    assert row.ratio.mean == pytest.approx(2.0)
    assert row.ratio.error is None
    assert any("1000000 in compose-0; 500000 in kubernetes-0" in warning for warning in comparison.warnings)


def test_recordings_of_one_label_are_compared_with_one_another() -> None:
    comparison = compare([recording_of("compose", 0, 10.0), recording_of("compose", 1, 12.0)])
    assert list(comparison.groups) == ["compose-0", "compose-1"]


@pytest.mark.parametrize(
    ("other", "warning"),
    [
        ({"run": run_of(release="2020e-13tev")}, "data (release): demo in compose-0; 2020e-13tev in kubernetes-0"),
        ({"run": run_of(samples={"Zmumu": [1_000_000, 10]})}, "data (samples)"),
        ({"run": run_of(settings={"lumi": 10, "fraction": 1.0, "pt_cuts": []})}, "cuts (pt_cuts, GeV): [20, 15, 10]"),
        ({"run": run_of(samples={"Zee": [1_000_000, 11]})}, "events selected: 10 in compose-0; 11 in kubernetes-0"),
        ({"run": run_of(events=2)}, "events read"),
        ({"run": run_of(digest="e")}, "differ in histograms"),
        ({"run": run_of(complete=False)}, "its run is not complete"),
        ({"run": None}, "no run is known"),
        ({"cores": 4}, "cores: 2 in compose-0; 4 in kubernetes-0"),
        ({"images": {"analysis": {"name": "analysis:v2"}}}, "analysis: different images: analysis:latest in"),
        (
            {"images": {"analysis": {"name": "analysis", "id": "sha256:0"}}},
            "different images of the same tag: sha256:",
        ),
        ({"limits": {"analysis": {"cores": 1.0}}}, "analysis: different CPU limits (cores): 2.0 in"),
        ({"limits": {"analysis": {"memory_bytes": 2**29}}}, "analysis: different memory limits (MB): 1074"),
        ({"source": "metrics.k8s.io: averages"}, "averages of metrics.k8s.io"),
        ({"problems": ["a container was not sampled"]}, "kubernetes-0: a container was not sampled"),
    ],
)
def test_a_difference_in_conditions_gives_a_warning(other: Mapping[str, Any], warning: str) -> None:
    pair = [recording_of("compose", 0, 10.0), recording_of("kubernetes", 0, 10.0, **other)]
    assert warning in "\n".join(warnings(pair))


def test_a_limit_of_all_cores_equals_no_limit() -> None:
    limits = {service: {"cores": 2.0, "memory_bytes": 2**30} for service in PIPELINE_SERVICES}
    assert warnings([recording_of("compose", 0, 9.0), recording_of("kubernetes", 0, 9.0, limits=limits)]) == []


def test_compare_prints_a_table_and_writes_a_plot_and_a_page(tmp_path: Path) -> None:
    files = []
    for label, step, seconds in (("compose", 1.0, (9.0, 10.0)), ("kubernetes", 10.0, (11.0, 12.0))):
        for number, value in enumerate(seconds):
            one = recording_of(label, number, value, step)
            files.append(tmp_path / f"{one.name}.csv")
            file = RecordingFile(files[-1], one.header)
            file.add(one.samples)
            file.finish(one.header)
    output = tmp_path / "there" / "cost.png"
    finished = run_monitor("compare", *map(str, files), "--output", str(output), COLUMNS="140")
    assert finished.returncode == 0, finished.stderr
    assert "1.211 ± 0.083" in finished.stdout
    assert "| data-loader | compose | 9.50 ± 0.50 | 9.50 ± 0.50 |" in output.with_suffix(".md").read_text()
    assert output.read_bytes().startswith(b"\x89PNG")
    assert output.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_a_service_of_one_platform_only_is_compared() -> None:
    kubernetes = recording_of("kubernetes", 0, 10.0)
    samples = [one for one in kubernetes.samples if one.service != "rabbitmq"]
    comparison = compare([recording_of("compose", 0, 10.0), Recording("k", kubernetes.header, samples)])
    assert comparison.row("rabbitmq", "compose") is not None
    assert comparison.row("rabbitmq", "kubernetes") is None
