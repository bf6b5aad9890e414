"""Read a ROOT file in chunks, and apply the data-loader's selection steps to the four leading leptons."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from common.columns import records
from common.errors import DataError
from common.releases import Release, Sample
from common.settings import RunSettings

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Columns = Mapping[str, Array]

LEPTONS = 4
_KINEMATICS = ("lep_pt", "lep_eta", "lep_phi", "lep_energy")
#: The beams lie at |η| ≈ 10. Far beyond that, sinh η makes masses overflow.
_MAX_ABS_ETA = 100.0

# Patterns of awkward's types that a branch may have.
_NUMBER = r"(float|int|uint)\d+"
_LIST_OF_NUMBERS = rf"(var|\d+) \* {_NUMBER}"
_LIST_OF_INTEGERS = r"(var|\d+) \* (int|uint)\d+"


def chunk_bounds(path: Path, release: Release, sample: Sample, settings: RunSettings) -> tuple[int, ...]:
    """Return the bounds of the chunks of a file: chunk i holds the entries from bound i up to bound i+1.

    The last bound is the number of entries that the run reads. A chunk ends at the end of a
    basket if one ends in its second half, so that no basket is decompressed twice. Raises
    DataError if the file, its tree or a branch cannot be read.
    """
    with _reading(path):
        tree = _tree(path, release.tree, path.stat().st_mtime_ns)
        branches = _branches(release, sample)
        missing = [name for name in branches if name not in tree]
        if missing:
            raise DataError(f"{path}: tree {release.tree!r} has no branch {', '.join(missing)}")
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
    path: Path, release: Release, sample: Sample, start: int, stop: int, *, decompression: Executor | None = None
) -> ak.Array:
    """Read the branches that the analysis needs, entries ``start`` to ``stop``.

    The ``decompression`` executor decompresses the baskets; by default the calling thread does. Raises
    DataError if the file is broken, holds fewer entries, or a branch has another type than it should.
    """
    # Open question to uproot: uproot.ZLIB.library = "isal" makes uproot 5.7 use ISA-L for writing only. For
    # reading, too, it would take a third off the CPU time of reading and selecting (0.88 s a million events).
    with _reading(path):
        tree = _tree(path, release.tree, path.stat().st_mtime_ns)
        arrays = tree.arrays(
            _branches(release, sample), entry_start=start, entry_stop=stop, decompression_executor=decompression
        )
    if len(arrays) != stop - start:
        raise DataError(
            f"{path}: holds {len(arrays)} entries between {start} and {stop}; the file has changed or is damaged"
        )
    _check_types(path, arrays, release, sample)
    return arrays


def leading_leptons(arrays: ak.Array, release: Release, sample: Sample, lumi_ifb: float) -> dict[str, Array]:
    """Return the four leading leptons and the weight of each event that has at least four leptons.

    Returns the columns that ``release.events`` declares, for n events: shape (n, 4) with
    energies in the file's unit, and (n,) for the weight. The release sorts leptons by
    falling pT, so the leading ones are the first ones.
    """
    jagged = {ours: _offsets_and_content(arrays[theirs]) for ours, theirs in release.branches.leptons.items()}
    (offsets, _), *others = jagged.values()
    counts = np.diff(offsets)
    four = counts >= LEPTONS
    for other, _ in others:
        if not np.array_equal(other, offsets):
            four &= np.diff(other) == counts
    indices = _first_four(offsets, four)
    columns = {
        name: np.take(content, indices if np.array_equal(own, offsets) else _first_four(own, four))
        for name, (own, content) in jagged.items()
    }
    columns["weight"] = np.compress(four, weights(arrays, release, sample, lumi_ifb))
    schema = release.events
    return {name: _cast(columns[name], np.dtype(column.dtype)) for name, column in schema.items()}


def weights(arrays: ak.Array, release: Release, sample: Sample, lumi_ifb: float) -> npt.NDArray[np.float32]:
    """Return the weight of each event, shape (events,): 1 for data, not finite where one of its factors is not.

    The weight is the cross-section weight times the release's factors, multiplied one after
    the other in float32. This is the arithmetic of the ATLAS outreach group's HZZAnalysis
    notebook, and reproduces its published yields digit for digit.
    """
    weight = np.ones(len(arrays), dtype=np.float32)
    if sample.is_data:
        return weight
    weight *= np.float32(sample.cross_section_weight(lumi_ifb))
    with np.errstate(over="ignore", invalid="ignore"):
        for name in release.branches.weights:
            weight *= _cast(ak.to_numpy(arrays[name]), weight.dtype)
    return weight


def well_measured(columns: Columns) -> Mask:
    """Return which events have a finite weight and leptons whose invariant mass can be computed.

    The kinematics must be finite, pT and energy positive, and |η| at most 100.
    """
    good = np.abs(columns["lep_eta"]) <= _MAX_ABS_ETA
    good &= np.isfinite(columns["lep_phi"])
    for name in ("lep_pt", "lep_energy"):
        good &= (columns[name] > 0) & (columns[name] < np.inf)
    # Three times as fast as all(axis=1) for four columns.
    return reduce(np.logical_and, (*good.T, np.isfinite(columns["weight"])))


def pt_cuts(columns: Columns, release: Release, settings: RunSettings) -> Mask:
    """Return which events pass the cuts on the leading leptons' pT: lepton i is strictly above cut i."""
    passed = np.ones(len(columns["lep_pt"]), dtype=np.bool_)
    for index, cut_gev in enumerate(settings.pt_cuts_gev):
        passed &= columns["lep_pt"][:, index].astype(np.float64) / release.per_gev > cut_gev
    return passed


#: The data-loader's selection steps after ``four_leptons``, by their names in the release.
STEPS: Mapping[str, Callable[[Columns, Release, RunSettings], Mask]] = {"pt_cuts": pt_cuts}


def select(
    arrays: ak.Array, release: Release, sample: Sample, settings: RunSettings
) -> tuple[ak.Array, dict[str, int]]:
    """Apply the data-loader's steps to a chunk; returns the selected events and the cutflow.

    An event passes ``four_leptons`` if its four leading leptons are well measured.
    """
    columns = leading_leptons(arrays, release, sample, settings.lumi_ifb)
    passed = well_measured(columns)
    cutflow = {"read": len(arrays), "four_leptons": int(passed.sum())}
    for step in release.loader_steps[1:]:
        passed &= STEPS[step](columns, release, settings)
        cutflow[step] = int(passed.sum())
    return records({name: np.compress(passed, values, axis=0) for name, values in columns.items()}), cutflow


def _branches(release: Release, sample: Sample) -> Sequence[str]:
    return [*release.branches.leptons.values(), *(() if sample.is_data else release.branches.weights)]


def _check_types(path: Path, arrays: ak.Array, release: Release, sample: Sample) -> None:
    for ours, theirs in release.branches.leptons.items():
        if ours in _KINEMATICS:
            _check_type(path, arrays, theirs, _LIST_OF_NUMBERS, "a list of numbers")
        else:
            _check_type(path, arrays, theirs, _LIST_OF_INTEGERS, "a list of integers")
    for name in () if sample.is_data else release.branches.weights:
        _check_type(path, arrays, name, _NUMBER, "one number")


def _check_type(path: Path, arrays: ak.Array, name: str, pattern: str, wanted: str) -> None:
    found = str(arrays[name].type.content)
    if not re.fullmatch(pattern, found):
        raise DataError(f"{path}: branch {name!r} holds {found!r}, not {wanted} an event")


def _first_four(offsets: npt.NDArray[np.int64], chosen: Mask) -> npt.NDArray[np.int64]:
    """Return the indices in the content of the first four elements of each chosen list, shape (lists, 4)."""
    return np.asarray(np.compress(chosen, offsets[:-1])[:, np.newaxis] + np.arange(LEPTONS))


def _offsets_and_content(values: ak.Array) -> tuple[npt.NDArray[np.int64], Array]:
    layout = values.layout.to_ListOffsetArray64(True)
    return np.asarray(layout.offsets.data), np.asarray(layout.content.data)


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Convert a column; values out of range become infinite, or the nearest integer of the type."""
    if dtype.kind == "i" and values.dtype != dtype:
        bounds = np.iinfo(dtype)
        values = np.clip(values, bounds.min, bounds.max)
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


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
