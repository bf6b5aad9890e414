"""A run with a broken file: the error names the file, and the events of the other files are complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uproot

from common.messages import ChunkFailed, ChunkTask, Events, FileTask, Message, SamplePlan
from common.settings import RunSettings, read
from physics import ANALYSES
from tests.support.real_data import real_data
from workers.data_loader.service import DataLoader

ANALYSIS = ANALYSES["2020e-13tev"]
BROKEN, INTACT = ANALYSIS.sample("WH125_ZZ4lep"), ANALYSIS.sample("data_A")

Break = Callable[[Path], None]


def _cut(tenths: int) -> Break:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * tenths // 10])

    return cut


def _flip(byte_range: Callable[[Path], tuple[int, int]]) -> Break:
    """Invert every byte of a range."""

    def flip(path: Path) -> None:
        start, stop = byte_range(path)
        content = bytearray(path.read_bytes())
        content[start:stop] = bytes(byte ^ 0xFF for byte in content[start:stop])
        path.write_bytes(content)

    return flip


def _basket(path: Path) -> tuple[int, int]:
    """Return the byte range of the compressed data of the first basket of lep_pt, without its key."""
    with uproot.open(path) as file:
        basket = file[ANALYSIS.tree]["lep_pt"].basket(0)
        start = int(file[ANALYSIS.tree]["lep_pt"].member("fBasketSeek")[0])
        key, compressed = int(basket.member("fKeylen")), int(basket.compressed_bytes)
    return start + key, start + key + compressed


def _basket_key(path: Path) -> tuple[int, int]:
    with uproot.open(path) as file:
        start = int(file[ANALYSIS.tree]["lep_pt"].member("fBasketSeek")[0])
    return start, start + 26


def _without_a_tree(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree("another", {"x": np.float32})


def _of_other_branches(path: Path) -> None:
    with uproot.recreate(path) as file:
        file.mktree(ANALYSIS.tree, {"lep_pt": np.float32})


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 100)


BREAKS: dict[str, Break] = {
    **{f"cut at {tenths} tenths": _cut(tenths) for tenths in range(10)},
    "flipped magic number": _flip(lambda path: (0, 4)),
    "flipped header": _flip(lambda path: (4, 60)),
    "flipped compressed block of a basket": _flip(_basket),
    "flipped key of a basket": _flip(_basket_key),
    "without a tree": _without_a_tree,
    "of other branches": _of_other_branches,
    "a directory": _directory,
    "a page of a web server": _page,
}


def read_all(loader: DataLoader, sample: str, settings: RunSettings) -> list[Message]:
    """Return all messages of the loader for a sample's file and its chunks, except the tasks."""
    planned = list(loader.handle(FileTask("run", sample, settings)))
    tasks = [message for message in planned if isinstance(message, ChunkTask)]
    return [message for message in planned if message not in tasks] + [
        answer for task in tasks for answer in loader.handle(task)
    ]


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_file_is_named_and_the_other_file_is_complete(what: str, tmp_path: Path) -> None:
    data = tmp_path / "4lep"
    for sample in (BROKEN, INTACT):
        target = data / sample.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_data() / "4lep" / sample.file, target)
    BREAKS[what](data / BROKEN.file)
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    settings = ANALYSES.resolve(RunSettings(data=str(data), pt_cuts_gev=(), chunk_entries=100))

    answers = read_all(loader, BROKEN.name, settings)

    problems = [answer.problem for answer in answers if isinstance(answer, SamplePlan | ChunkFailed) and answer.problem]
    assert problems
    for problem in problems:
        assert problem.startswith(f"{data / BROKEN.file}: ")
        assert len(problem) > len(f"{data / BROKEN.file}: ")
    events = [answer for answer in answers if isinstance(answer, Events)]
    assert sum(one.cutflow["read"] for one in events) == sum(one.chunk.stop - one.chunk.start for one in events)
    intact = [answer for answer in read_all(loader, INTACT.name, settings) if isinstance(answer, Events)]
    assert sum(one.cutflow["read"] for one in intact) == 39
