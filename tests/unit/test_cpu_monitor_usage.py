"""The CPU monitor's sums: CPU time, peaks and memory per service, from cumulative counters."""

from __future__ import annotations

import pytest

from monitoring import tables, usage
from monitoring.recording import RateCalculator
from monitoring.sources.base import PIPELINE_SERVICES
from tests.support.cpu_recordings import recording, sample


def test_cpu_time_counts_from_the_first_sample_or_from_the_start() -> None:
    running_before = [sample(10, 100.0), sample(20, 104.0)]
    started_meanwhile = [
        sample(12, 0.0, replica="2", started=12, state="started"),
        sample(13, 0.7, replica="2", started=12),
        sample(14, 1.1, replica="2", started=12, state="final"),
    ]
    used = usage.usage_by_service(recording(running_before + started_meanwhile))["analysis"]
    assert used.cpu_seconds == pytest.approx(5.1)
    assert (used.replicas, used.restarts) == (2, 0)


def test_a_restart_loses_no_cpu_time_and_is_counted() -> None:
    first = [sample(0, 0.0, state="started"), sample(1, 0.5), sample(2, 1.25, state="final")]
    second = [sample(3, 0.0, started=3, state="started"), sample(5, 1.9, started=3)]
    used = usage.usage_by_service(recording(first + second))["analysis"]
    assert used.cpu_seconds == pytest.approx(3.15)
    assert (used.replicas, used.restarts) == (1, 1)


def test_cores_are_the_slope_of_the_counter_since_the_last_sample() -> None:
    samples = recording([sample(0, 1.0), sample(2, 4.0), sample(2.5, 4.0)]).samples
    assert [one.cores for one in samples] == [None, 1.5, 0.0]


def test_a_reading_right_after_another_does_not_change_the_cores() -> None:
    # Clock ticks of 10 ms: the same use gives nothing or ten cores within a millisecond.
    readings = [sample(0, 1.0), sample(0.001, 1.01), sample(1, 1.5), sample(1.001, 1.5), sample(1.002, 1.51)]
    rates = RateCalculator(min_s=0.5)
    assert [rates.add_cores(one).cores for one in readings] == [None, None, 0.5, 0.5, 0.5]
    assert rates.add_cores(sample(2, 3.0)).cores == 1.5
    # The clock is set back.
    assert [rates.add_cores(one).cores for one in (sample(-50, 4.0), sample(-49, 4.25))] == [None, 0.25]


def test_the_cores_of_a_service_are_unknown_until_one_of_its_counters_was_read_twice() -> None:
    current = tables.CurrentUsage()
    shown = []
    for one in recording([sample(0, 1.0), sample(2, 4.0), sample(2, 7.0, replica="2")]).samples:
        current.show([one])
        (row,) = current.services()
        (cell,) = tables.current_table([row], "now").columns[2].cells
        shown.append((row["cores"], cell))
    assert shown == [(None, "–"), (1.5, "1.500"), (1.5, "1.500")]


def test_peak_cores_are_the_largest_mean_over_the_window_of_all_replicas() -> None:
    one = [sample(t, cpu) for t, cpu in ((0, 0.0), (1, 0.2), (2, 1.2), (3, 1.3))]
    two = [sample(t + 0.5, cpu, replica="2") for t, cpu in ((0, 0.0), (1, 0.0), (2, 0.8), (3, 0.8))]
    used = usage.usage_by_service(recording(one + two))["analysis"]
    # In the second from 1 to 2, one replica uses 1.0 s and the other 0.4 s.
    assert used.peak_cores(1.0) == pytest.approx(1.4)
    assert used.peak_cores(100.0) == pytest.approx(used.cpu_seconds / 3.5)


def test_peak_memory_adds_only_replicas_that_run_at_the_same_time() -> None:
    first = [
        sample(0, 0.0, memory_bytes=100),
        sample(0.6, 0.0, memory_bytes=300),
        sample(1, 0.1, memory_bytes=300, state="final"),
    ]
    later = [sample(2, 0.0, replica="2", memory_bytes=250), sample(3, 0.1, replica="2", memory_bytes=200)]
    assert usage.usage_by_service(recording(first + later))["analysis"].peak_memory_bytes == 300
    together = [sample(0.5, 0.0, replica="2", memory_bytes=250), sample(3, 0.1, replica="2", memory_bytes=200)]
    assert usage.usage_by_service(recording(first + together))["analysis"].peak_memory_bytes == 550


def test_the_total_is_the_sum_of_the_pipelines_services() -> None:
    services = [*PIPELINE_SERVICES, "submit", "host"]
    samples = [one for name in services for one in (sample(0, 0.0, name), sample(10, 2.0, name))]
    summary = tables.summarize(recording(samples, run={"run_id": "r", "events": 500_000}))
    assert summary["total"]["cpu_seconds"] == pytest.approx(10.0)
    assert summary["total"]["cpu_seconds_per_million_events"] == pytest.approx(20.0)
    assert summary["total"]["mean_cores"] == pytest.approx(1.0)
    assert [row["service"] for row in summary["services"]] == services
