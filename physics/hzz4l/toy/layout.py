"""What the files of a toy release hold: the branches, and the functions that calculate them from four leptons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.analyses import Sample
from physics.hzz4l.toy.events import Indices, Leptons
from physics.hzz4l.toy.samples import ToySample
from physics.hzz4l.toy.unread_branches import UnreadBranches

Columns = dict[str, ak.Array | npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Layout:
    """The layout of the files of a toy release.

    Parameters
    ----------
    toys
        The toy of each simulated sample, by its name.
    types
        uproot's type of each branch that the analysis reads or that identifies an event.
    stream
        Numbers that, after the seed, start the release's own stream of random numbers.
    simulated
        A function from the random generator, leptons (n, 4), the sample, the number of the first event and
        the sample's number of entries to the branches of n simulated events.
    data
        A function from the random generator, leptons (n, 4), the toys, and the index of each event's toy to
        the branches of n events of data.
    unread
        The release's other branches.
    """

    toys: Mapping[str, ToySample]
    types: Mapping[str, str]
    stream: tuple[int, ...]
    simulated: Callable[[np.random.Generator, Leptons, Sample, int, int], Columns]
    data: Callable[[np.random.Generator, Leptons, Sequence[ToySample], Indices], Columns]
    unread: UnreadBranches


def as_stored(
    columns: Mapping[str, npt.NDArray[np.generic]], types: Mapping[str, str], valid: npt.NDArray[np.bool_]
) -> Columns:
    """Convert columns of shape (n,) or (n, k) to the types of their branches.

    Those of shape (n, k) become jagged: they keep the elements that ``valid``, shape (n, k), has first in each row.
    """
    count = valid.sum(axis=1)
    return {
        name: ak.unflatten(values[valid].astype(types[name].removeprefix("var * ")), count)
        if values.ndim == 2
        else values.astype(types[name])
        for name, values in columns.items()
    }
