"""Read a ROOT file in chunks, and apply the data-loader's selection steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from common.analyses import Analysis, Sample
from common.columns import records
from common.errors import DataError
from common.settings import RunSettings


def chunk_bounds(path: Path, analysis: Analysis, sample: Sample, settings: RunSettings) -> tuple[int, ...]:
    """Return the bounds of the chunks of a file: chunk i holds the entries from bound i up to bound i+1.

    The last bound is the number of entries that the run reads. A chunk ends at the end of a
    basket if one ends in its second half, so that no basket is decompressed twice. Raises
    DataError if the file, its tree or a branch cannot be read.
    """
    with _reading(path):
        tree = _tree(path, analysis.tree, path.stat().st_mtime_ns)
        branches = _branches(analysis, sample)
        missing = [name for name in branches if name not in tree]
        if missing:
            raise DataError(f"{path}: tree {analysis.tree!r} has no branch {', '.join(missing)}")
        entries = settings.entries_of(tree.num_entries)
        baskets = np.asarray(tree.common_entry_offsets(filter_name=branches), dtype=np.int64)
    return split_at_baskets(entries, baskets, settings.chunk_entries)


def split_at_baskets(entries: int, baskets: npt.NDArray[np.int64], chunk_entries: int) -> tuple[int, ...]:
    """Split ``entries`` into chunks of at most ``chunk_entries``, where possible at one of the ``baskets``' offsets."""
    bounds = [0]
    while (start := bounds[-1]) < entries:
        stop = min(start + chunk_entries, entries)
        if stop < entries:
            basket = int(baskets[np.searchsorted(baskets, stop, side="right") - 1])
            if basket - start > chunk_entries // 2:
                stop = basket
        bounds.append(stop)
    return tuple(bounds)


def read(
    path: Path, analysis: Analysis, sample: Sample, start: int, stop: int, *, decompression: Executor | None = None
) -> ak.Array:
    """Read the branches that the analysis needs, entries ``start`` to ``stop``.

    The ``decompression`` executor decompresses the baskets; by default the calling thread does. Raises
    DataError if the file is broken, holds fewer entries, or a branch has another type than it should.
    """
    # Open question to uproot: uproot.ZLIB.library = "isal" makes uproot 5.7 use ISA-L for writing only. For
    # reading, too, it would take a third off the CPU time of reading and selecting (0.88 s a million events).
    with _reading(path):
        tree = _tree(path, analysis.tree, path.stat().st_mtime_ns)
        arrays = tree.arrays(
            _branches(analysis, sample), entry_start=start, entry_stop=stop, decompression_executor=decompression
        )
    if len(arrays) != stop - start:
        raise DataError(
            f"{path}: holds {len(arrays)} entries between {start} and {stop}; the file has changed or is damaged"
        )
    _check_types(path, arrays, analysis, sample)
    return arrays


def select(
    arrays: ak.Array, analysis: Analysis, sample: Sample, settings: RunSettings
) -> tuple[ak.Array, dict[str, int]]:
    """Apply the data-loader's steps to a chunk; returns the selected events and the cutflow.

    Raises DataError where a branch has a value that it should not have.
    """
    columns = analysis.columns(arrays, sample, settings.luminosity_ifb)
    found = analysis.objects(columns)
    cutflow = {"read": len(arrays)}
    passed = np.ones(len(columns["weight"]), dtype=np.bool_)
    for step in analysis.loader_steps:
        passed &= step.passes(found, settings)
        cutflow[step.name] = int(passed.sum())
    return records({name: np.compress(passed, columns[name], axis=0) for name in analysis.events}), cutflow


def _branches(analysis: Analysis, sample: Sample) -> list[str]:
    return [name for name, branch in analysis.branches.items() if not (sample.is_data and branch.simulation_only)]


def _check_types(path: Path, arrays: ak.Array, analysis: Analysis, sample: Sample) -> None:
    for name in _branches(analysis, sample):
        found, branch = str(arrays[name].type.content), analysis.branches[name]
        if not re.fullmatch(branch.types, found):
            raise DataError(f"{path}: branch {name!r} holds {found!r}, not {branch.what} an event")


@lru_cache(maxsize=16)
def _tree(path: Path, tree: str, modified: int) -> uproot.TTree:
    """Return the open tree of a file. Trees stay open between the chunks of a file; a run has at most 12 files."""
    file = uproot.open(path, array_cache=None)
    found = file.get(tree)
    if not isinstance(found, uproot.TTree):
        holds = ", ".join(f"{name} ({kind})" for name, kind in file.classnames().items())
        file.close()
        raise DataError(f"{path}: no tree {tree!r} in this file; it has {holds or 'no objects'}")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise any error of uproot on a broken file as a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise DataError(f"{path}: cannot be read as a ROOT file: {type(error).__name__}: {lines[0]}") from error
