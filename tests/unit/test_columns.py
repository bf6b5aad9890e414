"""Conversions between records and columns give the same as awkward's own functions."""

from __future__ import annotations

import pickle

import awkward as ak
import numpy as np
import pytest

from common.columns import columns_of, records


@pytest.mark.parametrize("events", [0, 1, 7])
@pytest.mark.parametrize("factors", [0, 5])
def test_records_have_the_same_pickle_as_an_awkward_array_of_the_columns(events: int, factors: int) -> None:
    columns = {
        "lep_pt": np.arange(4 * events, dtype=np.float32).reshape(events, 4),
        "channel": np.arange(events, dtype=np.int8),
        "factors": np.ones((events, factors)),
    }
    made, of_awkward = records(columns), ak.Array(columns)
    assert made.type == of_awkward.type
    assert pickle.dumps(made, protocol=5) == pickle.dumps(of_awkward, protocol=5)


@pytest.mark.parametrize("cut", [slice(None), slice(2, 5), slice(0, 0), np.arange(7) % 2 == 0])
def test_columns_equal_those_of_to_numpy_also_for_sliced_records(cut: object) -> None:
    full = records({"m4l": np.linspace(80, 250, 7), "lep_pt": np.arange(28, dtype=np.float32).reshape(7, 4)})
    part = full[cut]
    found = columns_of(part)
    assert list(found) == ["m4l", "lep_pt"]
    for name, values in found.items():
        expected = ak.to_numpy(part[name])
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
