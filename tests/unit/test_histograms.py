"""Histograms agree with numpy's, and sums of weights with the publication's arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.analyses import Axis, Peak
from tests.support.real_data import ANALYSIS, random_selected
from workers.analysis.histograms import PublishedSum, empty, fill, split, variations


def peak() -> Peak:
    found = ANALYSIS.model.peak
    assert found is not None
    return found


def by_name(events: ak.Array) -> dict[str, np.ndarray]:
    return dict(split(fill(events, ANALYSIS, "data"), ANALYSIS, "data"))


def selected_with(column: str, values: list[float]) -> ak.Array:
    """Events of weight 2, in the first channel."""
    n = len(values)
    events = random_selected(np.random.default_rng(1), n)
    return ak.Array(
        {
            **{name: ak.to_numpy(events[name]) for name in events.fields},
            "channel": np.zeros(n, np.int8),
            "weight": np.full(n, 2, np.float32),
            column: np.array(values, ak.to_numpy(events[column]).dtype),
        }
    )


def test_the_m4l_histogram_is_34_bins_of_5_gev_from_80_to_250() -> None:
    assert ANALYSIS.histograms["m4l"].axis.edges.tolist() == list(range(80, 251, 5))
    assert {"m4l", "m4l_4e", "m4l_2e2mu", "m4l_4mu"} <= ANALYSIS.histograms.keys()


@pytest.mark.parametrize("name", ANALYSIS.histograms)
def test_every_histogram_is_numpy_s_with_weights(name: str) -> None:
    events = random_selected(np.random.default_rng(11), 5000)
    observable = ANALYSIS.histograms[name]
    channel = name.removeprefix("m4l_") if name.startswith("m4l_") else None
    chosen = slice(None)
    if channel is not None:
        chosen = ak.to_numpy(events.channel) == {"4e": 0, "2e2mu": 1, "4mu": 2}[channel]
    values, weight = ak.to_numpy(events[observable.name])[chosen], ak.to_numpy(events.weight).astype(float)[chosen]

    found = by_name(events)[name]

    for row, weights in zip(found, (weight, weight**2), strict=True):
        expected = np.histogram(values, observable.axis.edges, weights=weights)[0]
        np.testing.assert_allclose(row, expected, rtol=1e-12, atol=1e-12)
    assert found[1].sum() > 0


def test_the_channels_add_up_to_all() -> None:
    found = by_name(random_selected(np.random.default_rng(5), 3000))

    total = found["m4l_4e"] + found["m4l_2e2mu"] + found["m4l_4mu"]

    np.testing.assert_allclose(total, found["m4l"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["m4l", "m_z1", "m_z2", "lead_pt"])
def test_bins_hold_their_lower_edge_and_the_last_edge_is_outside(name: str) -> None:
    axis = ANALYSIS.histograms[name].axis
    values, variances = by_name(selected_with(name, [*axis.edges, axis.edges[1]]))[name]

    assert values.tolist() == [2, 4, *[2] * (axis.bins - 2)]
    assert variances.tolist() == [4, 8, *[4] * (axis.bins - 2)]


def test_80_gev_is_in_the_first_bin_and_250_gev_in_none() -> None:
    below_250 = float(np.nextafter(250, 0))

    values = by_name(selected_with("m4l", [80.0, float(np.nextafter(80, 0)), below_250, 250.0]))["m4l"][0]

    assert (values[0], values[-1], values.sum()) == (2, 2, 4)


def test_what_lies_outside_or_is_not_a_number_is_in_no_bin() -> None:
    outside = [np.nan, -np.inf, np.inf, -1.0, 1e9]
    for name in ("m4l", "m_z1", "m_z2", "lead_pt"):
        assert by_name(selected_with(name, outside))[name].sum() == 0


# --- variations -------------------------------------------------------------


def varied(events: ak.Array, category: str) -> dict[str, np.ndarray]:
    return dict(split(fill(events, ANALYSIS, category), ANALYSIS, category))


def test_simulation_has_the_m4l_scale_up_and_down_and_data_nothing() -> None:
    assert variations(ANALYSIS, "data") == {}
    for category in ("signal", "zz", "z_ttbar"):
        assert variations(ANALYSIS, category) == {"m4l_scale_up": 1.01, "m4l_scale_down": 0.99}


@pytest.mark.parametrize("category", ["data", "signal"])
def test_data_and_signal_have_m4l_in_bins_of_half_a_gev(category: str) -> None:
    events = random_selected(np.random.default_rng(3), 4000)
    m4l, weight = ak.to_numpy(events.m4l), ak.to_numpy(events.weight).astype(float)

    fine = varied(events, category)["m4l_fine"]

    edges = peak().axis.edges
    assert np.diff(edges) == pytest.approx(0.5)
    for row, weights in zip(fine, (weight, weight**2), strict=True):
        np.testing.assert_allclose(row, np.histogram(m4l, edges, weights=weights)[0], rtol=1e-12, atol=1e-12)
    wide = varied(events, category)["m4l"][:, 3:18]
    np.testing.assert_allclose(fine.reshape(2, 15, 10).sum(axis=2), wide, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("category", ["z_ttbar", "zz"])
def test_a_background_has_no_fine_bins(category: str) -> None:
    assert "m4l_fine" not in varied(random_selected(np.random.default_rng(3), 10), category)


def test_a_chunk_s_row_stays_small() -> None:
    assert max(empty(ANALYSIS, category).nbytes for category in ("data", "z_ttbar", "zz", "signal")) <= 7_200


@pytest.mark.parametrize("category", ["data", "z_ttbar", "zz", "signal"])
def test_a_variation_is_the_histogram_of_scaled_masses_and_changes_no_other(category: str) -> None:
    events = random_selected(np.random.default_rng(3), 4000)
    found = varied(events, category)
    m4l, weight = ak.to_numpy(events.m4l), ak.to_numpy(events.weight).astype(float)

    moved = {"m4l_scale_up": m4l * 1.01, "m4l_scale_down": m4l * 0.99}
    for name in moved.keys() & found.keys():
        for row, weights in zip(found[name], (weight, weight**2), strict=True):
            expected = np.histogram(moved[name], ANALYSIS.histograms["m4l"].axis.edges, weights=weights)[0]
            np.testing.assert_allclose(row, expected, rtol=1e-12, atol=1e-12)
    for name in ANALYSIS.histograms:
        assert found[name].tolist() == by_name(events)[name].tolist()


@pytest.mark.parametrize("category", ["data", "z_ttbar", "zz", "signal"])
def test_no_events_fill_empty_histograms(category: str) -> None:
    nothing = fill(random_selected(np.random.default_rng(1), 0), ANALYSIS, category)

    assert nothing.tolist() == empty(ANALYSIS, category).tolist()
    assert not nothing.any()


# --- the published sum ------------------------------------------------------

WEIGHTS = st.lists(st.floats(-100, 100, width=32), max_size=60).map(lambda values: np.array(values, np.float32))


def float32_loop(weights: np.ndarray, batch: int) -> float:
    """The notebook's arithmetic, one addition after the other."""
    total = 0.0
    for start in range(0, len(weights), batch):
        running = np.float32(0)
        for weight in weights[start : start + batch]:
            running = np.float32(running + weight)
        total += float(running)
    return total


def published_sum(parts: Iterable[np.ndarray]) -> float:
    total = PublishedSum(np.float32)
    for part in parts:
        total.add(part)
    return total.total


@given(WEIGHTS)
def test_the_published_sum_adds_float32_after_float32(weights: np.ndarray) -> None:
    assert published_sum([weights]) == float32_loop(weights, 1_000_000)


@given(WEIGHTS, st.lists(st.integers(0, 60), max_size=8), st.integers(1, 20))
def test_the_published_sum_is_the_same_in_parts_and_restarts_each_batch(
    weights: np.ndarray, cuts: list[int], batch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PublishedSum, "BATCH", batch)

        assert published_sum(np.split(weights, sorted(cuts))) == float32_loop(weights, batch)
        assert published_sum(weights[n : n + 1] for n in range(len(weights))) == float32_loop(weights, batch)


def test_the_published_sum_of_float64_weights_adds_in_float64() -> None:
    weights = np.array([1.0, 1e-12, -1.0])
    total = PublishedSum(np.float64)
    total.add(weights)

    assert total.total == (1.0 + 1e-12) - 1.0 != 0
    assert published_sum([weights.astype(np.float32)]) == 0


def test_twenty_million_equal_weights_are_all_counted() -> None:
    """A single float32 would stall at 2²⁴ = 16777216."""
    million = np.ones(1_000_000, np.float32)

    assert published_sum(million for _ in range(20)) == 20_000_000


@pytest.mark.parametrize(
    "axis",
    [one.axis for one in ANALYSIS.histograms.values()] + [peak().axis, Axis(10, 99_999.99, 100_000.01)],
    ids=[*ANALYSIS.histograms, ANALYSIS.model.fine, "bins narrower than float32 resolves"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_is_in_the_bin_between_whose_edges_it_lies(axis: Axis, dtype: type) -> None:
    edges = axis.edges.astype(dtype)
    near = [edges, np.nextafter(edges, dtype(-np.inf)), np.nextafter(edges, dtype(np.inf))]
    anywhere = np.random.default_rng(1).uniform(axis.low - 20, axis.high + 20, 10_000).astype(dtype)
    values = np.concatenate([*near, anywhere, np.array([-np.inf, np.inf, 0, 1e30], dtype)])

    np.testing.assert_array_equal(axis.bin_of(values), np.searchsorted(axis.edges, values, side="right"))
    assert axis.bin_of(np.array([np.nan]))[0] in (0, axis.bins + 1)
