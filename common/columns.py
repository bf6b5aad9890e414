"""Between an awkward array of flat records and its columns, both ways without a copy.

``ak.Array`` and ``ak.to_numpy`` first find out what they have been given, which
takes ten to twenty times as long as this and longer than many a step of the analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from awkward.contents import NumpyArray, RecordArray

Array = npt.NDArray[Any]


def records(columns: Mapping[str, Array]) -> ak.Array:
    """Records of columns of shape (events,) and (events, k): what ``ak.Array`` makes of the dictionary."""
    contents = [NumpyArray(values) for values in columns.values()]
    return ak.Array(RecordArray(contents, list(columns), length=len(contents[0])))


def columns_of(events: ak.Array) -> dict[str, Array]:
    """The columns of records, each as ``ak.to_numpy`` gives it."""
    layout = events.layout
    if not (isinstance(layout, RecordArray) and all(isinstance(content, NumpyArray) for content in layout.contents)):
        return {name: np.asarray(ak.to_numpy(events[name])) for name in events.fields}
    return {name: layout.content(name).data for name in layout.fields}
