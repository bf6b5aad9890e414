"""Results that differ from a demo: the comparison names the one cause of all differences, or says there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.comparison.compare import Comparison, compare
from common.comparison.reading import read
from tests.support.demo_chunks import DemoChunks

Result = dict[str, Any]


class Demo:
    """The result of a small demo, and results that differ from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chunks = DemoChunks(folder)
        self.original = self.chunks.result()
        self._made: dict[str, Result] = {}

    def other(self, case: str) -> Result:
        """Return the result of a case, which is made once."""
        if case not in self._made:
            self._made[case] = CASES[case][0](self)
        return self._made[case]

    def times(self, n: int, *samples: str, chunk: int | None = None) -> Result:
        """Add the chunks of these samples n times, or one chunk of them."""
        return self.chunks.result(lambda name, index: n if name in samples and chunk in (None, index) else 1)

    def run(self, *without: str, **settings: Any) -> Result:
        """Run with other settings, or without some samples."""
        samples = tuple(name for name in self.chunks.partials if name not in without)
        return DemoChunks(self.folder, samples=samples, **settings).result()

    def edited(self, edit: Callable[[Result], Any], result: Result | None = None) -> Result:
        edited = deepcopy(result or self.original)
        edit(edited)
        return edited


def scale(factor: float, *categories: str) -> Callable[[Result], None]:
    """Multiply the weights of categories, by default of all simulation."""
    names = categories or ("z_ttbar", "zz", "signal")

    def edit(result: Result) -> None:
        for one in result["samples"].values():
            if one["category"] in names:
                one.update({key: one[key] * factor for key in ("yield", "yield_error", "sum_of_weights")})
        for name in names:
            one = result["categories"][name]
            one.update({key: one[key] * factor for key in ("yield", "yield_error")})
        for histogram in histograms(result):
            for name in set(names) & set(histogram):
                contents = histogram[name]
                contents["values"] = [value * factor for value in contents["values"]]
                contents["variances"] = [value * factor**2 for value in contents["variances"]]

    return edit


def histograms(result: Result) -> list[dict[str, Any]]:
    return [*result["histograms"].values(), *result["variations"].values(), result["m4l_fine"]]


def rebin(*names: str) -> Callable[[Result], None]:
    """Merge pairs of bins of these histograms, by default of all."""

    def edit(result: Result) -> None:
        everything = {**result["histograms"], **result["variations"], "m4l_fine": result["m4l_fine"]}
        for histogram in (everything[name] for name in names or everything):
            for name, contents in histogram.items():
                if name == "edges":
                    histogram[name] = contents[::2]
                else:
                    histogram[name] = {
                        key: np.reshape(array, (-1, 2)).sum(1).tolist() for key, array in contents.items()
                    }

    return edit


def swap_categories(result: Result) -> None:
    for one in (result["categories"], *histograms(result)):
        if "zz" in one:
            one["zz"], one["signal"] = one["signal"], one["zz"]


def move_a_bin(result: Result) -> None:
    for array in result["histograms"]["m4l"]["zz"].values():
        array[9], array[10] = array[10], array[9]


def set_bin(part: str, value: float) -> Callable[[Result], None]:
    def edit(result: Result) -> None:
        result["histograms"]["m_z1"]["zz"][part][20] = value

    return edit


def change_yield(result: Result) -> None:
    result["samples"]["llll"]["yield"] *= 1.00003


def reorder(result: Result) -> None:
    for part in ("samples", "categories", "histograms"):
        result[part] = dict(reversed(result[part].items()))
    result["settings"]["samples"] = result["settings"]["samples"][::-1]


def both(*edits: Callable[[Result], Any]) -> Callable[[Result], None]:
    def edit(result: Result) -> None:
        for one in edits:
            one(result)

    return edit


#: Each result, made from the demo, and its explanation: a pattern, "the same", or None for no single explanation.
CASES: Mapping[str, tuple[Callable[[Demo], Result], str | None]] = {
    "a run with another luminosity": (lambda d: d.run(lumi_ifb=12.0), r"luminosity: all simulation of B is 1\.2 times"),
    "weights with another luminosity": (lambda d: d.edited(scale(1.1)), r"1\.1 times .* in the settings is 1$"),
    "a sample of several twice": (lambda d: d.times(2, "Zee"), "B counts sample Zee twice$"),
    "the only sample twice": (lambda d: d.times(2, "llll"), "B counts sample llll twice$"),
    "a data sample twice": (lambda d: d.times(2, "data_B"), "B counts sample data_B twice$"),
    "a run without a sample": (lambda d: d.run("ttbar_lep"), "B lacks sample ttbar_lep$"),
    "a run without two samples": (
        lambda d: d.run("ZH125_ZZ4lep", "WH125_ZZ4lep"), "B lacks samples WH125_ZZ4lep, ZH125_ZZ4lep$",
    ),
    "a sample whose events were lost": (lambda d: d.times(0, "llll"), "B lacks sample llll$"),
    "a run without a data sample": (lambda d: d.run("data_A"), r"B lacks sample data_A; .* 0\.95 times"),
    "a chunk twice": (lambda d: d.times(2, "llll", chunk=3), "a chunk of sample llll, .* events, counted twice in B"),
    "a chunk lost": (lambda d: d.times(0, "ggH125_ZZ4lep", chunk=2), "a chunk of sample ggH125_ZZ4lep, .* lost in B"),
    "a chunk of data twice": (lambda d: d.times(2, "data_D", chunk=0), "a chunk of sample data_D, .* twice in B"),
    "pairs of bins": (lambda d: d.edited(rebin()), "another binning: the bins of A, merged, give those of B"),
    "pairs of bins in one histogram": (lambda d: d.edited(rebin("m_z2")), "another binning: .* in histogram m_z2$"),
    "another order": (lambda d: d.edited(reorder), "the same"),
    "other settings only": (lambda d: d.edited(lambda r: r["settings"].update(plots=True)), "the same"),
    "other chunks": (lambda d: d.run(chunk_entries=77), "only the rounding of sums differs"),
    "a histogram missing": (lambda d: d.edited(lambda r: r["histograms"].pop("m_z2")), "B lacks histogram m_z2"),
    "swapped categories": (lambda d: d.edited(swap_categories), None),
    "a bin moved": (lambda d: d.edited(move_a_bin), None),
    "a bin that is NaN": (lambda d: d.edited(set_bin("values", np.nan)), None),
    "a variance that is NaN": (lambda d: d.edited(set_bin("variances", np.nan)), None),
    "a variance": (lambda d: d.edited(set_bin("variances", 0.0123)), None),
    "a yield": (lambda d: d.edited(change_yield), None),
    "two samples twice": (lambda d: d.times(2, "Zee", "data_B"), None),
    "a chunk twice, and a bin moved": (lambda d: d.edited(move_a_bin, d.times(2, "llll", chunk=3)), None),
    "a chunk lost, and a variance": (lambda d: d.edited(set_bin("variances", 1.0), d.times(0, "llll", chunk=3)), None),
    "a sample twice, and a bin moved": (lambda d: d.edited(move_a_bin, d.times(2, "ttbar_lep")), None),
    "another luminosity, and a sample missing": (lambda d: d.run("Zee", lumi_ifb=12.0), None),
    "data that are scaled, too": (lambda d: d.edited(scale(1.2, "data", "z_ttbar", "zz", "signal")), None),
    "one category with another weight": (lambda d: d.edited(scale(1.2, "signal")), None),
    "another step of the cutflow": (
        lambda d: d.edited(lambda r: r["samples"]["llll"]["cutflow"].update(charge=12)), None,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def compared(folder: Path, a: Result, b: Result) -> Comparison:
    for label, result in (("A", a), ("B", b)):
        (folder / f"{label}.json").write_text(json.dumps(result))
    return compare(*(read(folder / f"{label}.json", label) for label in ("A", "B")))


@pytest.mark.parametrize("case", CASES)
def test_the_one_cause_of_all_differences_is_named(case: str, demo: Demo, tmp_path: Path) -> None:
    expected = CASES[case][1]
    found = compared(tmp_path, demo.original, demo.other(case))
    assert found.same == (expected == "the same")
    if found.same or expected is None:
        assert found.explanation is None
    else:
        assert found.explanation is not None
        assert re.search(expected, found.explanation.text)


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_the_same_whichever_result_comes_first(case: str, demo: Demo, tmp_path: Path) -> None:
    other = demo.other(case)
    there, back = compared(tmp_path, demo.original, other), compared(tmp_path, other, demo.original)
    kinds = [one.explanation and one.explanation.kind for one in (there, back)]
    assert kinds[0] == kinds[1]
    assert (len(there.differences), there.only_in_a) == (len(back.differences), back.only_in_b)
