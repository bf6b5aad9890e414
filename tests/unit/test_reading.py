"""Reading a ROOT file in chunks, and the errors for files that cannot be read."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from tests.support.real_data import ANALYSIS, DATA, NO_CUTS, SIMULATION, four_leptons, read_all, write_file
from workers.data_loader import reading

GOOD = four_leptons(40e3, 30e3, 20e3, 10e3)


def test_threads_that_read_chunks_of_one_file_get_the_events_of_one_thread(tmp_path: Path) -> None:
    events = [four_leptons(*(1e3 * (4 * number + lepton) for lepton in (4, 3, 2, 1))) for number in range(2000)]
    path = write_file(tmp_path / "f.root", events)
    bounds = list(pairwise(range(0, 2001, 50)))

    def pt(chunk: tuple[int, int]) -> list[list[float]]:
        return reading.read(path, ANALYSIS, SIMULATION, *chunk)["lep_pt"].to_list()  # type: ignore[no-any-return]

    expected = [pt(chunk) for chunk in bounds]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            assert list(threads.map(pt, bounds)) == expected


# --- files without events, or that cannot be read ---


def test_a_tree_without_entries_has_no_chunks_and_no_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [])

    assert reading.chunk_bounds(path, ANALYSIS, SIMULATION, NO_CUTS) == (0,)
    assert read_all(path)[1] == {"read": 0, "four_leptons": 0, "pt_cuts": 0}


def without_tree(path: Path) -> None:
    write_file(path, [GOOD], tree="analysis")


def without_branch(path: Path) -> None:
    write_file(path, [GOOD], change={"lep_phi": None, "mcWeight": None})


def flat_branch(path: Path) -> None:
    write_file(path, [GOOD] * 3, change={"lep_pt": np.ones(3, np.float32)})


def jagged_weight(path: Path) -> None:
    write_file(path, [GOOD] * 2, change={"mcWeight": ak.Array([[1.0], [1.0, 2.0]])})


def charges_with_decimals(path: Path) -> None:
    write_file(path, [GOOD], change={"lep_charge": ak.Array([[1.0, np.nan, 1.0, -1.0]])})


def histogram_for_tree(path: Path) -> None:
    with uproot.recreate(path) as file:
        file["mini"] = np.histogram([1.0, 2.0])


def text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>\n" * 100)


def empty(path: Path) -> None:
    path.touch()


def directory(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (without_tree, "no tree 'mini' in this file; it has analysis;1"),
        (without_branch, "has no branch lep_phi, mcWeight"),
        (flat_branch, "branch 'lep_pt' holds 'float32', not a list of real numbers"),
        (jagged_weight, "branch 'mcWeight' holds 'var * float64', not one real number"),
        (charges_with_decimals, "branch 'lep_charge' holds 'var * float64', not a list of signed integers"),
        (histogram_for_tree, "no tree 'mini' in this file; it has mini;1 (TH1D)"),
        (text, "cannot be read as a ROOT file"),
        (empty, "cannot be read as a ROOT file"),
        (directory, "directory"),
        (nothing, "No such file"),
    ],
)
def test_an_unreadable_file_is_named_with_the_cause(tmp_path: Path, make: Any, cause: str) -> None:
    path = tmp_path / "mc.root"
    make(path)

    with pytest.raises(DataError) as caught:
        read_all(path)

    assert str(path) in str(caught.value)
    assert cause in str(caught.value)


def test_a_truncated_file_is_an_error_wherever_it_is_truncated(tmp_path: Path) -> None:
    complete = write_file(tmp_path / "complete.root", [GOOD] * 500, basket=100).read_bytes()
    path = tmp_path / "cut.root"
    for length in np.linspace(1, len(complete), 25, endpoint=False).astype(int):
        path.write_bytes(complete[:length])
        with pytest.raises(DataError, match=r"cut\.root"):
            read_all(path)


def test_a_file_without_its_last_bytes_is_never_read_in_part(tmp_path: Path) -> None:
    """The bytes after the tree are needed for writing only."""
    complete = write_file(tmp_path / "complete.root", [GOOD] * 20).read_bytes()
    path = tmp_path / "cut.root"
    for missing in (1, 10, 100, 1000):
        path.write_bytes(complete[:-missing])
        with suppress(DataError):
            assert read_all(path)[1]["four_leptons"] == 20


def test_flipped_bits_give_an_error_or_the_same_events(tmp_path: Path) -> None:
    """The compressed baskets carry checksums; other bits must not change the events."""
    rng = np.random.default_rng(1)
    events = [four_leptons(*np.sort(rng.choice([10e3, 20e3, 30e3], 4))[::-1]) for _ in range(400)]
    body = write_file(tmp_path / "complete.root", events).read_bytes()
    expected = read_all(tmp_path / "complete.root")[0]
    path = tmp_path / "flipped.root"
    errors = 0
    for at in rng.integers(0, len(body), 60):
        flipped = bytearray(body)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            found = read_all(path)[0]
        except DataError:
            errors += 1
        else:
            assert ak.array_equal(found, expected), at
    assert errors > 10


def test_a_file_with_fewer_entries_than_planned_is_an_error(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [GOOD] * 10)

    with pytest.raises(DataError, match=r"f\.root: holds 2 entries between 8 and 12"):
        reading.read(path, ANALYSIS, SIMULATION, 8, 12)


def test_a_file_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [GOOD] * 3)
    assert read_all(path)[1]["read"] == 3

    shutil.move(write_file(tmp_path / "other.root", [GOOD] * 5), path)

    assert read_all(path)[1]["read"] == 5


# --- chunks -----------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 400), max_size=30),
    chunk_entries=st.integers(1, 300),
    part=st.floats(0.001, 1),
)
def test_chunks_cover_every_entry_once_and_end_at_baskets_where_possible(
    sizes: list[int], chunk_entries: int, part: float
) -> None:
    baskets = np.cumsum([0, *sizes])
    entries = int(part * baskets[-1])

    bounds = reading.split_at_baskets(entries, baskets, chunk_entries)

    assert (bounds[0], bounds[-1]) == (0, entries)
    for start, stop in pairwise(bounds):
        assert 0 < stop - start <= chunk_entries
        in_second_half = baskets[(baskets > start + chunk_entries // 2) & (baskets <= start + chunk_entries)]
        if stop < entries and len(in_second_half):
            assert stop == in_second_half[-1]


def test_chunks_of_a_tree_end_where_its_baskets_end(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [GOOD] * 100, basket=30)

    def bounds(**settings: Any) -> tuple[int, ...]:
        return reading.chunk_bounds(path, ANALYSIS, SIMULATION, replace(NO_CUTS, **settings))

    assert bounds() == (0, 100)
    assert bounds(chunk_entries=35) == (0, 30, 60, 90, 100)
    assert bounds(chunk_entries=70) == (0, 60, 100)
    assert bounds(chunk_entries=22) == (0, 22, 44, 60, 82, 100)
    assert bounds(chunk_entries=40, fraction=0.55) == (0, 30, 55)


def test_a_fraction_reads_the_first_entries_of_each_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.root", [four_leptons(40e3 + n, 30e3, 20e3, 10e3) for n in range(10)])

    events, cutflow = read_all(path, settings=replace(NO_CUTS, fraction=0.29))

    assert cutflow["read"] == 2
    assert ak.to_numpy(events.lep_pt)[:, 0].tolist() == [40000, 40001]
    # 0.29 · 100 is 28.999… in binary; the fraction is taken as the decimal number that the user wrote.
    assert replace(NO_CUTS, fraction=0.29).entries_of(100) == 29


# --- the sample of the events -----------------------------------------------------


def of_channels(path: Path, *channels: int) -> Path:
    """Write a file with an event of each of these channel numbers."""
    return write_file(path, [GOOD] * len(channels), change={"channelNumber": np.array(channels, np.int32)})


@pytest.mark.parametrize("channels", [(361106, 361106), (410000, 410000, 341964), (299000, 410000)])
def test_a_file_of_another_sample_is_refused(channels: tuple[int, ...], tmp_path: Path) -> None:
    path = of_channels(tmp_path / "f.root", *channels)

    with pytest.raises(DataError, match=rf"{path}: channelNumber is \d+ .*; this is not the file of sample ttbar_lep"):
        reading.chunk_bounds(path, ANALYSIS, SIMULATION, NO_CUTS)


def test_simulation_under_the_name_of_data_is_refused(tmp_path: Path) -> None:
    path = of_channels(tmp_path / "f.root", 298687, 361106)

    with pytest.raises(DataError, match=r"channelNumber is 361106 in entry 1; .* sample data_A, but that of Zee$"):
        reading.chunk_bounds(path, ANALYSIS, DATA, NO_CUTS)


def test_files_with_the_numbers_of_their_sample_or_without_numbers_are_read(tmp_path: Path) -> None:
    simulation, data = (
        of_channels(tmp_path / "a.root", 410000, 410000),
        of_channels(tmp_path / "b.root", 298687, 299055),
    )

    assert reading.chunk_bounds(simulation, ANALYSIS, SIMULATION, NO_CUTS) == (0, 2)
    assert reading.chunk_bounds(data, ANALYSIS, DATA, NO_CUTS) == (0, 2)
    assert reading.chunk_bounds(of_channels(tmp_path / "c.root"), ANALYSIS, SIMULATION, NO_CUTS) == (0,)
    assert reading.chunk_bounds(write_file(tmp_path / "d.root", [GOOD]), ANALYSIS, SIMULATION, NO_CUTS) == (0, 1)


# --- the number of entries ------------------------------------------------------


def claim_entries(path: Path, real: int, claimed: int, *, tree_alone: bool) -> None:
    """Replace a file's number of entries: in the tree alone, or also in the branches and where their baskets end."""
    content = path.read_bytes()
    old, new = real.to_bytes(8, "big"), claimed.to_bytes(8, "big")
    if not tree_alone:
        path.write_bytes(content.replace(old, new))
        return
    for occurrence in re.finditer(re.escape(old), content):
        path.write_bytes(content[: occurrence.start()] + new + content[occurrence.end() :])
        with uproot.open(path) as file:
            if file[ANALYSIS.tree].num_entries == claimed:
                return


@pytest.mark.parametrize("claimed", [2**61, 10_000_000])
@pytest.mark.parametrize("tree_alone", [True, False])
def test_a_file_that_claims_more_entries_than_its_baskets_hold_is_named(
    claimed: int, tree_alone: bool, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "f.root", [four_leptons(50e3, 40e3, 30e3, 20e3)] * 291)
    claim_entries(path, 291, claimed, tree_alone=tree_alone)
    with uproot.open(path) as file:
        assert file[ANALYSIS.tree].num_entries == claimed
    with pytest.raises(DataError, match=rf"^{path}: tree 'mini' claims {claimed} entries, .* 291"):
        reading.chunk_bounds(path, ANALYSIS, SIMULATION, NO_CUTS)


def test_more_chunks_than_a_run_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "f.root", [four_leptons(50e3, 40e3, 30e3, 20e3)] * 20)
    monkeypatch.setattr(reading, "MAX_CHUNKS", 10)
    assert len(reading.chunk_bounds(path, ANALYSIS, SIMULATION, replace(NO_CUTS, chunk_entries=2))) == 11
    with pytest.raises(DataError, match=rf"^{path}: CHUNK_ENTRIES=1 would split 20 entries into more than 10 chunks"):
        reading.chunk_bounds(path, ANALYSIS, SIMULATION, replace(NO_CUTS, chunk_entries=1))
