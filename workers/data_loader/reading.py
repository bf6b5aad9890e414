"""From a ROOT file to the four leading leptons and the weight of each event, and the loader's selection steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
#: The beams lie at |η| ≈ 10; far beyond, sinh η makes masses overflow.
_MAX_ABS_ETA = 100.0

# ISA-L inflates half as fast again as zlib, with the same checks. uproot.ZLIB.library, which
# should choose it, reaches the writer alone in uproot 5.7.
uproot.compression._decompress_ZLIB.library = "isal"
#: Baskets are inflated outside Python's lock.
_decompression: ThreadPoolExecutor | uproot.TrivialExecutor = ThreadPoolExecutor(2, thread_name_prefix="decompression")

# What a branch must hold, in awkward's words for its type.
_NUMBER = r"(float|int|uint)\d+"
_LIST_OF_NUMBERS = rf"(var|\d+) \* {_NUMBER}"
_LIST_OF_INTEGERS = r"(var|\d+) \* (int|uint)\d+"


@dataclass(frozen=True)
class Plan:
    """The chunks of one file: ``entries`` are read, in chunks between consecutive ``bounds``."""

    entries: int
    bounds: tuple[int, ...]


def decompress_in_line() -> None:
    """Inflate baskets in the thread that reads them: for a process that has one core, among others that have theirs."""
    global _decompression  # noqa: PLW0603  of the whole process
    _decompression = uproot.TrivialExecutor()


def plan(path: Path, release: Release, sample: Sample, settings: RunSettings) -> Plan:
    """Split the entries of a file that a run reads into chunks.

    A chunk ends where the file's baskets end if such a place lies in its second
    half, so that no basket is decompressed twice. Raises DataError where the
    file, its tree or a branch cannot be read.
    """
    with _reading(path):
        tree = _tree(path, release.tree, path.stat().st_mtime_ns)
        branches = _branches(release, sample)
        missing = [name for name in branches if name not in tree]
        if missing:
            raise DataError(f"{path}: tree {release.tree!r} has no branch {', '.join(missing)}")
        entries = settings.entries_of(tree.num_entries)
        baskets = np.asarray(tree.common_entry_offsets(filter_name=branches), dtype=np.int64)
    return Plan(entries, _bounds(entries, baskets, settings.chunk_entries))


def _bounds(entries: int, baskets: npt.NDArray[np.int64], chunk_entries: int) -> tuple[int, ...]:
    bounds = [0]
    while (start := bounds[-1]) < entries:
        stop = min(start + chunk_entries, entries)
        if stop < entries:
            basket = int(baskets[np.searchsorted(baskets, stop, side="right") - 1])
            if basket - start > chunk_entries // 2:
                stop = basket
        bounds.append(stop)
    return tuple(bounds)


def read(path: Path, release: Release, sample: Sample, start: int, stop: int) -> ak.Array:
    """Read the branches the analysis needs, entries ``start`` to ``stop``.

    Raises DataError where the file is broken, holds fewer entries, or a branch
    does not hold the numbers it should.
    """
    with _reading(path):
        tree = _tree(path, release.tree, path.stat().st_mtime_ns)
        arrays = tree.arrays(
            _branches(release, sample), entry_start=start, entry_stop=stop, decompression_executor=_decompression
        )
    if len(arrays) != stop - start:
        raise DataError(f"{path}: holds {len(arrays)} entries between {start} and {stop}; has the file changed?")
    _check_types(path, arrays, release, sample)
    return arrays


def leading_leptons(arrays: ak.Array, release: Release, sample: Sample, lumi_ifb: float) -> dict[str, Array]:
    """The four leading leptons of every event that has four of them, and its weight.

    Returns columns of n events as ``release.events`` declares them: shape (n, 4),
    the kinematics in the file's energy unit; (n,) for the weight. The release
    sorts leptons by falling pT, so the leading ones are the first ones.
    """
    jagged = {ours: _offsets_and_content(arrays[theirs]) for ours, theirs in release.branches.leptons.items()}
    (offsets, _), *others = jagged.values()
    counts = np.diff(offsets)
    four = counts >= LEPTONS
    for other, _ in others:
        if not np.array_equal(other, offsets):
            four &= np.diff(other) == counts
    places = _first_four(offsets, four)
    columns = {
        name: np.take(content, places if np.array_equal(own, offsets) else _first_four(own, four))
        for name, (own, content) in jagged.items()
    }
    columns["weight"] = np.compress(four, weights(arrays, release, sample, lumi_ifb))
    schema = release.events
    return {name: _cast(columns[name], np.dtype(column.dtype)) for name, column in schema.items()}


def weights(arrays: ak.Array, release: Release, sample: Sample, lumi_ifb: float) -> npt.NDArray[np.float32]:
    """Weight of each event, shape (events,); 1 for data. Not finite where a factor of it is not.

    The cross-section weight times the release's factors, multiplied one after
    the other in float32: the arithmetic of the ATLAS outreach group's
    HZZAnalysis notebook, so that its published yields come out digit for digit.
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
    """Which events have a finite weight and four leptons whose mass can be computed.

    Their kinematics are finite, pT and energy positive, and |η| at most 100.
    """
    good = np.abs(columns["lep_eta"]) <= _MAX_ABS_ETA
    good &= np.isfinite(columns["lep_phi"])
    for name in ("lep_pt", "lep_energy"):
        good &= (columns[name] > 0) & (columns[name] < np.inf)
    # Three times as fast as all(axis=1) on so few columns.
    return reduce(np.logical_and, (*good.T, np.isfinite(columns["weight"])))


def pt_cuts(columns: Columns, release: Release, settings: RunSettings) -> Mask:
    """Which events pass the cuts on the leading leptons' pT: strictly greater, each in its place."""
    passed = np.ones(len(columns["lep_pt"]), dtype=np.bool_)
    for place, cut_gev in enumerate(settings.pt_cuts_gev):
        passed &= columns["lep_pt"][:, place].astype(np.float64) / release.per_gev > cut_gev
    return passed


#: The selection steps of the loader after ``four_leptons``, by the catalogue's names.
STEPS: Mapping[str, Callable[[Columns, Release, RunSettings], Mask]] = {"pt_cuts": pt_cuts}


def select(
    arrays: ak.Array, release: Release, sample: Sample, settings: RunSettings
) -> tuple[ak.Array, dict[str, int]]:
    """Apply the loader's steps to a chunk; returns the events left and how many each step left.

    An event has ``four_leptons`` if the four leading ones are well measured.
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
    """Where in the content the first four of each chosen list are, shape (lists, 4)."""
    return np.asarray(np.compress(chosen, offsets[:-1])[:, np.newaxis] + np.arange(LEPTONS))


def _offsets_and_content(values: ak.Array) -> tuple[npt.NDArray[np.int64], Array]:
    layout = values.layout.to_ListOffsetArray64(True)
    return np.asarray(layout.offsets.data), np.asarray(layout.content.data)


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Narrow a column: what does not fit becomes infinite, or the narrow type's last integer."""
    if dtype.kind == "i" and values.dtype != dtype:
        bounds = np.iinfo(dtype)
        values = np.clip(values, bounds.min, bounds.max)
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


@lru_cache(maxsize=16)
def _tree(path: Path, tree: str, modified: int) -> uproot.TTree:
    """An open tree; kept, because a file's chunks come later than its plan. 16 are more than a run has files."""
    file = uproot.open(path, array_cache=None)
    found = file.get(tree)
    if not isinstance(found, uproot.TTree):
        holds = ", ".join(f"{name} ({kind})" for name, kind in file.classnames().items())
        file.close()
        raise DataError(f"{path}: no tree {tree!r} in this file; it has {holds or 'nothing'}")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a broken file makes uproot raise, say which file it is."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise DataError(f"{path}: cannot be read as a ROOT file: {type(error).__name__}: {lines[0]}") from error
