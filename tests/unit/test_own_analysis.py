"""A user's own analysis in one file: how it is loaded, what its mistakes are called, and the shipped examples."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
import vector

from common import settings
from common.analyses import Analyses, Step
from common.errors import AnalysisError, SettingsError
from common.messages import Result
from common.settings import RunSettings
from physics import ANALYSES
from tests.support.paths import ROOT
from tests.support.real_data import process, real_data
from workers.check import check
from workers.visualisation.service import Visualisation

EXAMPLES = ROOT / "examples"
#: The first six lines of a file, which ends with the changes of the shipped analysis.
HEAD = """from dataclasses import replace; from functools import partial
import numpy as np, awkward as ak
from common.analyses import Axis, Branch, Category, Column, Observable, Step
from physics import ANALYSES as HZZ4L
DEMO = HZZ4L["demo"]
ANALYSIS = replace(DEMO,
"""
OBSERVABLE = 'Observable("x", {}, Axis(10, 0.0, 1.0), label="x", caption="x")'


def written(folder: Path, changes: str, name: str = "own") -> Path:
    """Write the file of an analysis with these changes, whose first line is line 7."""
    path = folder / f"{name}.py"
    path.write_text(f"{HEAD}    {changes}\n)\n")
    return path


# --- mistakes ---


def step(function: str) -> str:
    return f'processor_steps=(*DEMO.processor_steps, Step("mine", {function}))'


def loader_step(function: str) -> str:
    return f'loader_steps=(*DEMO.loader_steps, Step("mine", {function}))'


def observable(function: str) -> str:
    return f"observables=(*DEMO.observables, {OBSERVABLE.format(function)})"


MISTAKES_OF_FUNCTIONS = {
    "no such column": (
        step('lambda leptons, run: leptons.columns["lep_ptt"][:, 0] > 1'),
        "own.py:7: step 'mine' raised KeyError: 'lep_ptt'; the columns are lep_pt, lep_eta,",
    ),
    "no such column in the loader": (
        loader_step('lambda leptons, run: leptons.columns["jet_n"] > 1'),
        "own.py:7: step 'mine' raised KeyError: 'jet_n'; the columns are lep_pt, lep_eta,",
    ),
    "no such object": (
        step("lambda leptons, run: leptons.tracks > 1"),
        "own.py:7: step 'mine' raised AttributeError: 'FourLeptons' object has no attribute 'tracks'",
    ),
    "no such branch": (
        'branches={**DEMO.branches, "jet_ptt": Branch("float32", "a number")}',
        "tree 'mini' has no branch jet_ptt",
    ),
    "a mask of the wrong length": (
        step("lambda leptons, run: np.ones(3, dtype=bool)"),
        r"own.py:7: step 'mine' returned an array of bool of shape \(3,\); "
        r"it must return an array of truth values of shape \(\d+,\), one an event",
    ),
    "one truth value for all events": (
        step("lambda leptons, run: np.array([True])"),
        r"own.py:7: step 'mine' returned an array of bool of shape \(1,\)",
    ),
    "numbers in place of a mask": (
        step("lambda leptons, run: leptons.mass"),
        "own.py:7: step 'mine' returned an array of float64",
    ),
    "nothing in place of a mask": (
        loader_step("lambda leptons, run: None"),
        r"own.py:7: step 'mine' returned NoneType \(None\)",
    ),
    "a step that raises": (
        step("lambda leptons, run: 1 / 0"),
        "own.py:7: step 'mine' raised ZeroDivisionError: division by zero",
    ),
    "an observable that raises": (
        observable("lambda leptons: leptons.pt_gev(7)"),
        "own.py:7: observable 'x' raised IndexError: index 7 is out of bounds",
    ),
    "an observable of another length": (
        observable("lambda leptons: leptons.mass[:-1]"),
        r"own.py:7: observable 'x' returned an array of float64 .*; it must return an array of numbers of shape",
    ),
    "a value that is not finite": (
        observable("lambda leptons: np.where(leptons.mass > 100, np.inf, 1.0)"),
        r"own.py:7: observable 'x' is inf in \d+ of \d+ events; every value must be finite",
    ),
    "a weight that is not finite": (
        "loader_steps=(), columns=lambda arrays, sample, lumi: "
        '{**(found := DEMO.columns(arrays, sample, lumi)), "weight": found["weight"] * np.float32(np.nan)}',
        r"own.py:7: columns gave the weight nan to \d+ of \d+ selected events; every weight must be finite",
    ),
    "a column that is not returned": (
        'columns=lambda arrays, sample, lumi: {"weight": np.ones(len(arrays), np.float32)}',
        "own.py:7: columns returned no column lep_pt, lep_eta,",
    ),
    "a column of another type": (
        "columns=lambda arrays, sample, lumi: "
        '{**(found := DEMO.columns(arrays, sample, lumi)), "weight": found["weight"].astype(float)}',
        r"own.py:7: columns returned an array of float64 of shape .* as 'weight'; events declares float32",
    ),
    "a mask of lists": (
        step("lambda leptons, run: ak.Array([[True], []] * len(leptons.mass))[: len(leptons.mass)]"),
        r"own.py:7: step 'mine' returned an awkward array of type \d+ \* var \* bool; it must return",
    ),
    "a mask with missing values": (
        step("lambda leptons, run: ak.mask(leptons.mass > 0, leptons.mass > 100)"),
        r"own.py:7: step 'mine' returned a masked array of bool of shape \(\d+,\); it must return",
    ),
    "a function that exits": (
        step("lambda leptons, run: exit(0)"),
        "own.py:7: step 'mine' raised SystemExit: 0",
    ),
    "a step without the run settings": (
        step("lambda leptons: leptons.mass > 100"),
        r"^own.py:7: step 'mine' raised TypeError: .*takes 1 positional argument but 2 were given",
    ),
    "a partial function with too many arguments": (
        step("partial(lambda leptons: leptons.mass > 100, 1)"),
        r"^own.py:7: step 'mine' raised TypeError: .*takes 1 positional argument but 3 were given",
    ),
    "an object as a function": (
        ")\nclass Cut:\n    def __call__(self, leptons): ...\nANALYSIS = replace(DEMO, " + step("Cut()"),
        r"^own.py:9: step 'mine' raised TypeError: .*takes 2 positional arguments but 3 were given",
    ),
    "an observable with the run settings": (
        observable("lambda leptons, run: leptons.mass"),
        "^own.py:7: observable 'x' raised TypeError: .*missing 1 required positional argument: 'run'",
    ),
    "an integer that is too large": (
        observable("lambda leptons: np.full(len(leptons.mass), 70_000)").replace("label", 'dtype="int16", label'),
        r"own.py:7: observable 'x' is 70000 in (\d+) of \1 events, which int16 does not have; give the ob",
    ),
    "a number that is no integer": (
        observable("lambda leptons: np.full(len(leptons.mass), 1.5)").replace("label", 'dtype="uint8", label'),
        "own.py:7: observable 'x' is 1.5 in .* events, which uint8 does not have",
    ),
    "a number that is no truth value": (
        observable("lambda leptons: np.full(len(leptons.mass), 2)").replace("label", 'dtype="bool", label'),
        "own.py:7: observable 'x' is 2 in .* events, which bool does not have",
    ),
    "a channel that does not exist": (
        "channel=lambda leptons: np.full(len(leptons.mass), 3, np.int8)",
        "own.py:7: channel returned a value outside 0 to 2",
    ),
}


@pytest.mark.parametrize(("changes", "words"), MISTAKES_OF_FUNCTIONS.values(), ids=MISTAKES_OF_FUNCTIONS)
def test_a_mistake_in_a_function_is_named_with_file_and_line(
    changes: str, words: str, tmp_path: Path, cache: Path
) -> None:
    (checked,) = check(written(tmp_path, changes), cache)
    assert checked.mistakes
    assert re.search(words, checked.mistakes[0]), checked.mistakes


MISTAKES_OF_LABELS = {
    "an unknown colour": (
        'categories=(replace(DEMO.categories[0], colour="blurple"), *DEMO.categories[1:])',
        "own.py: Category 'data': matplotlib has no colour 'blurple'; write for example 'red' or '#e8483a'",
    ),
    "a label of a category": (
        r'categories=(replace(DEMO.categories[0], label=r"$\zett$"), *DEMO.categories[1:])',
        r"own.py: Category 'data': label '$\\zett$' is not valid mathtext of matplotlib: ",
    ),
    "a label of an observable": (
        r'observables=(replace(DEMO.observables[0], label="$m_{4$"), *DEMO.observables[1:])',
        "own.py: Observable 'm4l': label or unit '$m_{4$ [GeV]' is not valid mathtext of matplotlib: ",
    ),
    "a process": (r'process=r"H\tu ZZ"', r"own.py: process '$H\\tu ZZ$' is not valid mathtext of matplotlib: "),
}


@pytest.mark.parametrize(("changes", "words"), MISTAKES_OF_LABELS.values(), ids=MISTAKES_OF_LABELS)
def test_what_cannot_be_drawn_is_found_by_the_check(changes: str, words: str, tmp_path: Path, cache: Path) -> None:
    (checked,) = check(written(tmp_path, changes), cache)
    (mistake,) = checked.mistakes
    assert mistake.startswith(words)


def test_a_mistake_that_is_found_in_several_categories_is_named_once(tmp_path: Path, cache: Path) -> None:
    (checked,) = check(written(tmp_path, step("lambda leptons, run: leptons.mass")), cache)
    assert len(checked.samples) > 1
    assert len(checked.mistakes) == 1


def test_each_label_that_cannot_be_drawn_is_named(tmp_path: Path, cache: Path) -> None:
    labels = ", ".join(f'replace(DEMO.observables[{n}], name="x{n}", label="$m_{{4$")' for n in (0, 0))
    labels = labels.replace('"x0"', '"x1"', 1)
    (checked,) = check(written(tmp_path, f"observables=(*DEMO.observables, {labels})"), cache)
    assert [mistake.partition(":")[2].split("'")[1] for mistake in checked.mistakes] == ["x1", "x0"]


def test_whole_numbers_are_sent_and_read_as_the_same_settings() -> None:
    shipped = ANALYSES["demo"]
    ints, floats = (
        Analyses(replace(shipped, lumi_ifb=kind(10), pt_cuts_gev=(kind(20), kind(15)))) for kind in (int, float)
    )
    assert ints.resolve(RunSettings("demo")).digest == floats.resolve(RunSettings("demo")).digest


def test_a_subclass_of_a_step_may_have_fields_of_its_own() -> None:
    @dataclass(frozen=True)
    class Cut(Step):
        thresholds: list[float]

    assert Cut("mine", len, [20.0]).thresholds == [20.0]
    with pytest.raises(AnalysisError, match="Cut 'mine': passes is int"):
        Cut("mine", 1, [20.0])  # type: ignore[arg-type]


MISTAKES_OF_FILES = {
    "an axis without bins": (
        'observables=(Observable("m4l", len, Axis(0, 1.0, 2.0), label="", caption=""),)',
        r"own.py:7: Axis\(0, 1.0, 2.0\) has no bins; give the number of bins",
    ),
    "an axis whose edges do not rise": (
        'observables=(Observable("m4l", len, Axis(5, 2.0, 2.0), label="", caption=""),)',
        "own.py:7: .*has no bins",
    ),
    "a step twice": (
        'processor_steps=(Step("charge", len), Step("charge", len))',
        "own.py:6: release 'demo': step 'charge' occurs 2 times; give each another name",
    ),
    "an observable twice": ("observables=2 * DEMO.observables", "own.py:6: .*observable 'm4l' occurs 2 times"),
    "a histogram twice": (
        'observables=(*DEMO.observables, Observable("m4l_4e", len, Axis(1, 0.0, 1.0), label="", caption=""))',
        "own.py:6: .*histogram 'm4l_4e' occurs 2 times",
    ),
    "a sample twice": ("samples=2 * DEMO.samples", "own.py:6: .*sample 'data_A' occurs 2 times"),
    "a category twice": ("categories=2 * DEMO.categories", "own.py:6: .*category 'data' occurs 2 times"),
    "no channel": ("channels=()", "own.py:6: .*it has no channel; give at least one"),
    "a category that does not exist": (
        "categories=DEMO.categories[:-1]",
        "own.py:6: .*sample 'ggH125_ZZ4lep' has the category 'signal', which does not exist; choose one of data",
    ),
    "an unknown role": (
        'categories=(*DEMO.categories[:-1], replace(DEMO.categories[-1], role="sigal"))',
        r"own.py:7: Category 'signal': role is str \('sigal'\); it must be one of 'data', 'signal', 'background'",
    ),
    "data in a category of simulation": (
        'samples=tuple(replace(one, category="zz") if one.name == "data_A" else one for one in DEMO.samples)',
        "own.py:6: .*sample 'data_A' has the period 'A', and its category 'zz' the role 'background'; collision data, ",
    ),
    "simulation in the category of data": (
        'samples=tuple(replace(one, category="data") if one.name == "Zee" else one for one in DEMO.samples)',
        "own.py:6: .*sample 'Zee' has no period, and its category 'data' the role 'data'; collision data, and nothing",
    ),
    "an axis that is none": (
        'observables=(Observable("x", len, (20, 0, 60), label="x", caption="x"),)',
        r"own.py:7: Observable 'x': axis is tuple \(\(20, 0, 60\)\); it must be Axis",
    ),
    "no axis": (
        'observables=(Observable("x", len, None, label="x", caption="x"),)',
        r"own.py:7: Observable 'x': axis is NoneType \(None\); it must be Axis",
    ),
    "an edge that is no number": ('observables=Axis(5, "0", 10)', r"own.py:7: Axis: low is str \('0'\); it must be "),
    "an uncertainty that is no number": (
        'model=replace(DEMO.model, normalisations=(replace(DEMO.model.normalisations[0], relative="0.017"),))',
        r"own.py:7: Normalisation 'luminosity': relative is str \('0.017'\); it must be a finite int or float",
    ),
    "an uncertainty that is NaN": (
        "model=replace(DEMO.model, scale=replace(DEMO.model.scale, relative=np.nan))",
        r"own.py:7: ScaleVariation 'm4l_scale': relative is float \(nan\); it must be a finite",
    ),
    "a luminosity that is no number": (
        'lumi_ifb="ten"',
        r"own.py:6: release 'demo': lumi_ifb is str \('ten'\); it must be a finite int or float",
    ),
    "a negative luminosity": (
        "lumi_ifb=-10",
        "own.py:6: release 'demo': lumi_ifb is -10; a luminosity lies from 0.001 to 10000 fb⁻¹",
    ),
    "a negative luminosity of a period": (
        "periods=tuple(replace(one, lumi_ifb=-1) for one in DEMO.periods)",
        "own.py:6: .*period 'A': lumi_ifb is -1; a luminosity lies",
    ),
    "a negative cut": ("pt_cuts_gev=(20, -15)", "own.py:6: .*pt_cuts_gev has -15, which is not a pT in GeV"),
    "a toy without files": ("make_file=None", r"own.py:6: .*it is a toy; give a function make_file\(.*, write\)"),
    "bins whose result is too large": (
        'observables=(*DEMO.observables, Observable("x", len, Axis(10_000_000, 0, 1), label="x", caption="x"))',
        r"own.py:6: .* are 90,\d+,\d+ numbers, and 300,000 fit .*; choose fewer bins than the 10,000,000 of 'x'",
    ),
    "a number of numpy, which JSON does not have": (
        "lumi_ifb=np.float32(10)",
        r"own.py:6: .*lumi_ifb is float32 .*; it must be a finite int or float",
    ),
    "a cut that is no number": (
        'pt_cuts_gev=(20, 15, "10")',
        r"own.py:6: .*pt_cuts_gev is tuple \(\(20, 15, '10'\)\); it must be tuple\[float, ...\]",
    ),
    "a function that is none": ('processor_steps=(Step("mine", None),)', "Step 'mine': .*; it must be a function"),
    "values that are none": (
        'observables=(Observable("x", None, Axis(1, 0, 1), label="x", caption="x"),)',
        r"own.py:7: Observable 'x': values is NoneType \(None\); it must be a function",
    ),
    "one step that is no tuple": (
        'processor_steps=(Step("mine", len))',
        "own.py:6: .*processor_steps is Step .*; it must be tuple\\[Step, ...\\]",
    ),
    "an unknown type of numbers": (
        'observables=(replace(DEMO.observables[0], dtype="foo"),)',
        r"own.py:7: Observable 'm4l': dtype is str \('foo'\); it must be one of 'float32', 'float64', 'int8'",
    ),
    "an unknown type of a column": ('events={"weight": Column("foo")}', "own.py:7: Column: dtype is str .*; it must "),
    "integers that may be NaN": (
        'observables=(replace(DEMO.observables[0], dtype="int8", allow_nan=True),)',
        "own.py:7: Observable 'm4l': dtype 'int8' has no NaN, so that allow_nan cannot be True; choose 'float32' or",
    ),
    "an invalid pattern of a branch": (
        'branches={"jet_n": Branch("u?int(32", "a number")}',
        r"own.py:7: Branch: types is 'u\?int\(32', which is no regular expression \(missing \), .*\); write a pattern",
    ),
    "no data": (
        'categories=tuple(replace(one, role="background") for one in DEMO.categories)',
        r"own.py:6: .*0 categories have the role 'data' \(none\); exactly one must have it",
    ),
    "a fitted observable that does not exist": (
        'model=replace(DEMO.model, observable="m5l", scale=None, peak=None)',
        "own.py:6: .*the model has the observable 'm5l', which does not exist; did you mean 'm4l'\\?",
    ),
    "a window between the edges of bins": (
        "observables=(replace(DEMO.observables[0], axis=Axis(17, 80.0, 250.0)), *DEMO.observables[1:])",
        "own.py:6: .*the bins of 'm4l', .* have no edges at the ends of the model's window, 115 and 130; choose other",
    ),
    "a window from high to low": (
        "model=replace(DEMO.model, window=(130.0, 115.0))",
        "own.py:6: .*no edges at the ends of the model's window, 130 and 115",
    ),
    "bins that end inside the window of the peak": (
        "observables=(replace(DEMO.observables[0], axis=Axis(5, 110.0, 135.0)), *DEMO.observables[1:])",
        "own.py:6: .*have no edges at the ends of the window of peak 'mass', 105 and 160",
    ),
    "fine bins that do not fill the bins": (
        "model=replace(DEMO.model, peak=replace(DEMO.model.peak, axis=Axis(15, 20.0, 170.0), window=(110.0, 160.0)))",
        "own.py:6: .*the bins of 'm4l', .* are not whole numbers of bins of peak 'mass'",
    ),
    "a peak that is shifted beyond its axis": (
        "model=replace(DEMO.model, peak=replace(DEMO.model.peak, scanned=(100.0, 150.0)))",
        r"own.py:7: peak 'mass': .*has no edges at 80 and 185, between which the peak is shifted from 125",
    ),
    "a simulated peak outside of the scan": (
        "model=replace(DEMO.model, peak=replace(DEMO.model.peak, simulated=140.0))",
        r"own.py:7: peak 'mass': the simulated position 140 is not in the scanned range \(115.0, 135.0\)",
    ),
    "a name that is no name": (
        'processor_steps=(Step("../x", len),)',
        "own.py:6: .*step '../x' has a name that cannot be used; use up to 100 letters",
    ),
    "an unknown field": ("stepz=()", "own.py:6: the file cannot be imported: TypeError: .*stepz"),
    "a syntax error": ("model=", "own.py:[78]: .*; the file is not valid Python"),
    "an import that fails": (
        ")\nimport nothing_of_this_name\nlist(",
        "own.py:8: the file cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    ),
    "an exit": (")\nraise SystemExit(0)\nlist(", "own.py:8: the file cannot be imported: SystemExit: 0"),
    "an analysis that is none": (")\nANALYSIS = 1\nlist(", "own.py: the file defines no analysis; it must define"),
    "a release twice": (")\nANALYSES = (DEMO, DEMO)\nlist(", "own.py: release 'demo' of ANALYSES: give each once"),
    "a file that loads itself": (
        ")\nfrom pathlib import Path\nHZZ4L.load(Path(__file__))\nlist(",
        "own.py:9: .*the file uses itself as an analysis while it is imported; put what runs it under",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), MISTAKES_OF_FILES.values(), ids=MISTAKES_OF_FILES)
def test_a_file_that_cannot_be_used_is_named_with_the_line(changes: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=words):
        ANALYSES.load(written(tmp_path, changes))


def test_an_absent_file_or_one_with_the_name_of_the_shipped_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"none\.py: No such file or directory; give a file that can be read"):
        ANALYSES.load(tmp_path / "none.py")
    with pytest.raises(AnalysisError, match="an own analysis cannot be called 'hzz4l'; give the file another name"):
        ANALYSES.load(written(tmp_path, "", "hzz4l"))
    with pytest.raises(SettingsError, match=r"ANALYSIS='my analysis\.py': the file's name is that of the analysis"):
        settings.read({"ANALYSIS": "my analysis.py"})


@pytest.mark.parametrize("name", ["zz4l", "hzz4l_tight"])
def test_the_examples_have_no_mistakes(name: str, cache: Path) -> None:
    for checked in check(EXAMPLES / f"{name}.py", cache):
        assert checked.mistakes == ()
        assert list(checked.cutflow.values())[-1] > 1_000


def test_the_examples_are_short() -> None:
    assert len((EXAMPLES / "zz4l.py").read_text().splitlines()) <= 80
    assert len((EXAMPLES / "hzz4l_tight.py").read_text().splitlines()) < 25


def test_functions_may_return_flat_awkward_arrays_and_any_integers(tmp_path: Path, cache: Path) -> None:
    changes = (
        f"{step('lambda leptons, run: ak.Array(leptons.mass > 100)')}, "
        f"{observable('lambda leptons: ak.Array(leptons.mass / 1000)')}, "
        "channel=lambda leptons: DEMO.channel(leptons).astype(int)"
    )
    (checked,) = check(written(tmp_path, changes), cache)
    assert checked.mistakes == ()


def test_the_example_of_the_document_reads_a_branch_that_the_shipped_analysis_does_not(
    tmp_path: Path, cache: Path
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-analysis.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "jet_n" in block)
    path = tmp_path / "own.py"
    path.write_text(example)
    (checked,) = check(path, cache)
    assert checked.mistakes == ()
    assert 0 < checked.cutflow["no_jets"] < checked.cutflow["pt_cuts"]


# --- names and checksums ---


def test_a_changed_file_is_another_analysis_beside_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, "lumi_ifb=10.0")
    first = ANALYSES.load(path)
    assert ANALYSES.load(path) is first
    written(tmp_path, "lumi_ifb=20.0")
    second = ANALYSES.load(path)
    assert (first["demo"].lumi_ifb, second["demo"].lumi_ifb) == (10.0, 20.0)
    assert first.sha256 != second.sha256
    assert ANALYSES.find("own", first.sha256) is first
    assert ANALYSES.find("own", second.sha256) is second


def test_a_run_carries_the_name_and_the_checksum_of_its_analysis(tmp_path: Path) -> None:
    written(tmp_path, "pt_cuts_gev=(7.0,)")
    analyses = ANALYSES.in_folder(tmp_path)
    run = analyses.resolve(RunSettings("demo", analysis="own"))
    assert (run.analysis, run.pt_cuts_gev) == ("own", (7.0,))
    assert run.analysis_sha256 == analyses.find("own", "").sha256
    assert analyses.of(run).name == "own"
    shipped = analyses.resolve(RunSettings(release="demo"))
    assert shipped.analysis_sha256 == ANALYSES.sha256
    assert len({run.digest, shipped.digest, replace(run, analysis_sha256="0" * 64).digest}) == 3


def test_a_service_says_what_it_lacks_and_what_to_do(tmp_path: Path) -> None:
    folder = ANALYSES.in_folder(tmp_path, "data-processor")
    with pytest.raises(
        SettingsError,
        match=rf"^data-processor has no analysis 'absent': {tmp_path}/absent\.py does not exist; "
        "put the file there, then requeue the dead letter$",
    ):
        folder.find("absent", "1" * 64)
    written(tmp_path, "lumi_ifb=30.0", "other")
    with pytest.raises(SettingsError, match=r"^data-processor has other code of the analysis 'other' than the run: "):
        folder.find("other", "1" * 64)
    with pytest.raises(SettingsError, match=r"other code of the analysis 'hzz4l'.*the same version of the project"):
        folder.find("hzz4l", "1" * 64)


def test_the_visualisation_refuses_a_result_whose_analysis_it_does_not_have(tmp_path: Path) -> None:
    service = Visualisation(settings.read({"ANALYSES_DIR": str(tmp_path)}), keep=False)
    result = {"analysis": "absent", "release": "demo", "provenance": {"analysis_sha256": "1" * 64}}
    with pytest.raises(SettingsError, match=r"^visualisation has no analysis 'absent'"):
        service.handle(Result("run", final=True, result=result))
    service.close()


def test_a_name_in_a_message_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    written(tmp_path, "", "outside")
    for name in ("../outside", "/etc/passwd", "..", ""):
        with pytest.raises(SettingsError):
            RunSettings(analysis=name)
        with pytest.raises(SettingsError):
            ANALYSES.in_folder(tmp_path / "inside").find(name, "")


def test_the_path_of_a_file_gives_its_folder_and_name() -> None:
    read = settings.read({}, {"ANALYSIS": "examples/zz4l.py"})
    assert (read.run.analysis, read.analyses) == ("zz4l", Path("examples"))
    read = settings.read({"ANALYSIS": "zz4l", "ANALYSES_DIR": "/analyses"})
    assert (read.run.analysis, read.analyses) == ("zz4l", Path("/analyses"))


# --- the example on real files ---


def counts_of_a_plain_script(path: Path) -> tuple[int, np.ndarray, np.ndarray]:
    """Select ZZ→4ℓ with awkward and vector alone; returns the events, m4l and the leading Z's pT in GeV."""
    vector.register_awkward()
    with uproot.open(path) as file:
        branches = file["mini"].arrays(filter_name="lep_*")
    branches = branches[branches.lep_n >= 4]
    of = {name.removeprefix("lep_"): ak.values_astype(branches[name], float) for name in branches.fields}
    leptons = ak.zip(
        {
            "pt": of["pt"] / 1000, "eta": of["eta"], "phi": of["phi"], "E": of["E"] / 1000,
            "charge": of["charge"], "flavour": of["type"],
        },
        with_name="Momentum4D",
    )[:, :4]  # fmt: skip
    leptons = leptons[(leptons.pt[:, 0] > 20) & (leptons.pt[:, 1] > 15) & (leptons.pt[:, 2] > 10)]
    flavours = ak.sum(leptons.flavour, axis=1)
    leptons = leptons[(ak.sum(leptons.charge, axis=1) == 0) & ((flavours == 44) | (flavours == 48) | (flavours == 52))]
    events, m4l, z_pt = 0, [], []
    for four in leptons:
        best = None
        for (a, b), (c, d) in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))):
            if all(
                four[i].charge == -four[j].charge and four[i].flavour == four[j].flavour for i, j in ((a, b), (c, d))
            ):
                pairs = sorted((four[a] + four[b], four[c] + four[d]), key=lambda pair: abs(pair.mass - 91.188))
                if best is None or abs(pairs[0].mass - 91.188) < abs(best[0].mass - 91.188):
                    best = pairs
        if best is not None and all(66 < pair.mass < 116 for pair in best):
            events += 1
            m4l.append((four[0] + four[1] + four[2] + four[3]).mass)
            z_pt.append(max(pair.pt for pair in best))
    return events, np.array(m4l), np.array(z_pt)


@pytest.mark.parametrize("name", ["data_A", "data_B", "data_C", "Zee", "ttbar_lep"])
def test_zz4l_counts_on_real_files_what_a_plain_awkward_script_counts(name: str) -> None:
    directory = real_data() / "4lep"
    analyses = ANALYSES.in_folder(EXAMPLES)
    run = analyses.resolve(RunSettings(analysis="zz4l"))
    analysis = analyses.of(run)
    sample = analysis.sample(name)
    (message,) = process("run", directory / sample.file, sample, run, analysis).messages
    events, m4l, z_pt = counts_of_a_plain_script(directory / sample.file)
    assert message.cutflow["on_shell"] == len(message.events) == events > 0
    np.testing.assert_allclose(ak.to_numpy(message.events.m4l), m4l, rtol=1e-9)
    np.testing.assert_allclose(ak.to_numpy(message.events.z_pt), z_pt, rtol=1e-6)
    for observable, values in (("m4l", m4l), ("z_pt", z_pt)):
        axis = analysis.observable(observable).axis
        filled = np.bincount(axis.bin_of(ak.to_numpy(message.events[observable])), minlength=axis.bins + 2)[1:-1]
        assert filled.tolist() == np.histogram(values, axis.edges)[0].tolist()
