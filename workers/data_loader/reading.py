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

from common import evaluation
from common.analyses import Analysis, Sample
from common.columns import records
from common.errors import DataError
from common.messages import MAX_CHUNKS
from common.settings import RunSettings
from workers.data_loader.root_file import Version, version_of

#: The most objects of a file that a message lists.
_OBJECTS_SHOWN = 5


def chunk_bounds(path: Path, analysis: Analysis, sample: Sample, settings: RunSettings) -> tuple[int, ...]:
    """Return the bounds of the chunks of a file: chunk i holds the entries from bound i up to bound i+1.

    The last bound is the number of entries that the run reads. A chunk ends at the end of a
    basket if one ends in its second half, so that no basket is decompressed twice. Raises
    DataError if the file, its tree or a branch cannot be read, if the tree has not the number of entries that its
    baskets hold, if its events are those of another sample, or if there would be more than MAX_CHUNKS chunks.
    """
    with _reading(path):
        tree = _tree(path, analysis.tree, version_of(path))
        branches = _branches(analysis, sample)
        missing = [name for name in branches if name not in tree]
        if missing:
            raise DataError(f"{path}: tree {analysis.tree!r} has no branch {', '.join(missing)}")
        for name in branches:
            _check_entries(path, tree, tree[name])
        if analysis.dsid_branch is not None and analysis.dsid_branch in tree:
            _check_dsid(path, tree[analysis.dsid_branch], analysis, sample)
        entries = settings.entries_of(tree.num_entries)
        baskets = np.asarray(tree.common_entry_offsets(filter_name=branches), dtype=np.int64)
    bounds: tuple[int, ...] = ()
    if entries <= MAX_CHUNKS * settings.chunk_entries:
        bounds = split_at_baskets(entries, baskets, settings.chunk_entries)
    if not 1 <= len(bounds) <= MAX_CHUNKS + 1:
        raise DataError(
            f"{path}: CHUNK_ENTRIES={settings.chunk_entries} would split {entries} entries into more than "
            f"{MAX_CHUNKS} chunks; choose a larger number"
        )
    return bounds


def _check_entries(path: Path, tree: uproot.TTree, branch: uproot.TBranch) -> None:
    """Raise DataError unless the baskets of a branch can hold the entries that the tree claims to have."""
    offsets = np.asarray(branch.entry_offsets, dtype=np.int64)
    counts = np.diff(offsets)
    if offsets[-1] != tree.num_entries or (counts < 0).any():
        raise DataError(
            f"{path}: tree {tree.name!r} claims {tree.num_entries} entries, but the baskets of branch "
            f"{branch.name!r} hold {offsets[-1]}; the file is damaged, or was not closed by the program that wrote it"
        )
    if not len(counts):
        return
    largest = int(counts.argmax())
    # A claim of more entries than the file has bytes is compared with what the basket itself says.
    if counts[largest] > path.stat().st_size and counts[largest] != branch.basket(largest).num_entries:
        raise DataError(
            f"{path}: tree {tree.name!r} claims {tree.num_entries} entries, but a basket of branch {branch.name!r} "
            f"holds {branch.basket(largest).num_entries} instead of {counts[largest]}; the file is damaged"
        )


def _check_dsid(path: Path, branch: uproot.TBranch, analysis: Analysis, sample: Sample) -> None:
    """Raise DataError if the first or the last entry has the DSID of another sample: for data, any DSID.

    A simulated sample whose DSID is not known is not checked.
    """
    _check_entries(path, branch.tree, branch)
    filled = np.flatnonzero(np.diff(branch.entry_offsets))
    ends = ((0, filled[0], 0), (branch.num_entries - 1, filled[-1], -1)) if len(filled) else ()
    for entry, basket, index in ends:
        found = branch.basket(basket).array(library="np")[index]
        others = [one.name for one in analysis.samples if one.dsid is not None and np.array_equal(found, one.dsid)]
        if others if sample.is_data else sample.dsid is not None and not np.array_equal(found, sample.dsid):
            expected = "" if sample.is_data else f" instead of {sample.dsid}"
            raise DataError(
                f"{path}: {branch.name} is {found} in entry {entry}{expected}; this is not the file of sample "
                f"{sample.name}{f', but that of {others[0]}' if others else ''}"
            )


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
        tree = _tree(path, analysis.tree, version_of(path))
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

    Raises DataError where a branch has a value that it should not have, and AnalysisError where a function of
    the analysis fails or returns something else than it should.
    """
    columns = evaluation.columns(analysis, arrays, sample, settings.luminosity_ifb)
    found = evaluation.objects(analysis, columns)
    cutflow = {"read": len(arrays)}
    passed = np.ones(len(columns["weight"]), dtype=np.bool_)
    for step in analysis.loader_steps:
        passed &= evaluation.passes(step, found, settings, columns)
        cutflow[step.name] = int(passed.sum())
    return records({name: np.compress(passed, columns[name], axis=0) for name in analysis.events}), cutflow


def _branches(analysis: Analysis, sample: Sample) -> list[str]:
    return [name for name, branch in analysis.branches.items() if not (sample.is_data and branch.simulation_only)]


def _check_types(path: Path, arrays: ak.Array, analysis: Analysis, sample: Sample) -> None:
    record = arrays.type.content
    for name in _branches(analysis, sample):
        found, branch = str(record.content(name)), analysis.branches[name]
        if not re.fullmatch(branch.types, found):
            raise DataError(f"{path}: branch {name!r} holds {found!r}, not {branch.what} an event")


@lru_cache(maxsize=16)
def _tree(path: Path, tree: str, version: Version) -> uproot.TTree:
    """Return the open tree of a file, for any number of threads: uproot reads it by fsspec, with a position a read.

    Trees stay open between the chunks of a file; a run has at most 12 files.
    """
    file = uproot.open(path, array_cache=None)
    try:
        found = file.get(tree)
        if isinstance(found, uproot.TTree):
            return found
        objects = [f"{name} ({kind})" for name, kind in file.classnames().items()]
    except BaseException:
        file.close()
        raise
    file.close()
    holds = ", ".join(objects[:_OBJECTS_SHOWN]) + (", …" if len(objects) > _OBJECTS_SHOWN else "")
    raise DataError(f"{path}: no tree {tree!r} in this file; it has {holds or 'no objects'}")


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
