"""Every module imports what ARCHITECTURE.md allows, and only ``physics`` names what belongs to one analysis."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from physics import ANALYSES
from tests.support.paths import ROOT

SERVICES = ("data_loader", "data_processor", "analysis", "visualisation")
#: Each part of the project, and the parts that it may import besides itself.
MAY_IMPORT = {
    "common": (),
    "monitoring": ("common.errors",),
    "physics": ("common",),
    "workers": ("common", "physics"),
    "analysis.py": ("common", "physics", "workers"),
}
PARTS = ("analysis", "benchmarks", "common", "monitoring", "physics", "tests", "workers")


def modules(folder: str) -> Iterator[Path]:
    path = ROOT / folder
    yield from [path] if path.is_file() else path.rglob("*.py")


def imports(module: Path) -> Iterator[str]:
    """The modules of the project that a module imports, also within functions."""
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in PARTS)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_the_parts_below_it(part: str) -> None:
    allowed = (part, *MAY_IMPORT[part])
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules(part)
        for name in imports(module)
        if not any(is_in(name, package) for package in allowed) and module != ROOT / "common" / "cpu_monitor.py"
    ]
    assert not found


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_imports_another_nor_the_client(service: str) -> None:
    others = [f"workers.{other}" for other in (*SERVICES, "client") if other != service]
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules(f"workers/{service}")
        for name in imports(module)
        if any(is_in(name, other) for other in others)
    ]
    assert not found


def test_only_the_transports_import_pika() -> None:
    """Entry points choose a transport; nothing else in common or in a service imports one or pika."""
    found = [
        f"{module.relative_to(ROOT)}"
        for part in ("common", *(f"workers/{service}" for service in SERVICES))
        for module in modules(part)
        if not module.is_relative_to(ROOT / "common" / "transport")
        and (
            any(name.startswith(("common.transport.rabbitmq", "common.transport.embedded")) for name in imports(module))
            or "import pika" in module.read_text()
        )
    ]
    assert not found


@cache
def imported_first(module: Path) -> frozenset[str]:
    """What a module imports when it is imported itself."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def packages(module: Path, seen: set[Path]) -> set[str]:
    """Return the packages of others that a module needs to be imported, also those of the project's modules in it."""
    seen.add(module)
    found = set()
    for name in imported_first(module):
        first, *rest = name.split(".")
        if first not in PARTS:
            found |= {first} - sys.stdlib_module_names
            continue
        for length in range(len(rest) + 1):
            path = ROOT.joinpath(first, *rest[:length])
            for file in (path / "__init__.py", path.with_suffix(".py")):
                if file.exists() and file not in seen:
                    found |= packages(file, seen)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_the_packages_that_its_service_imports(service: str) -> None:
    lines = (ROOT / "workers" / service / "requirements.txt").read_text().splitlines()
    installed = {line.split(";")[0].strip().replace("-", "_") for line in lines if not line.startswith("#")}
    seen: set[Path] = set()
    needed = set().union(*(packages(module, seen) for module in modules(f"workers/{service}")))
    assert needed - {"urllib3"} <= installed  # which requests needs, too


# --- names of one analysis ----------------------------------------------------

#: Files that hold no physics.
SERVICE_FILES = ("analysis.py", "common", "workers", "monitoring", "benchmarks")
#: The analysis repeated in other tools, and the test of its fit with a true mass.
OF_ONE_ANALYSIS = (ROOT / "benchmarks" / "implementations", ROOT / "benchmarks" / "closure.py")
TEXT = (".css", ".html", ".js", ".py", ".svg")
#: Names that every analysis or every result may have.
GENERAL = {"data", "signal", "weight"}
#: Each place that may name something particular: file, name, and the reason.
EXCEPTIONS = {
    ("analysis.py", "Higgs"): "the first line of --help says what the project is for",
    ("benchmarks/comparison.py", "sum_of_weights"): "the weights of any simulated sample have a sum",
    ("common/analyses.py", "sum_of_weights"): "the weights of any simulated sample have a sum",
    ("common/comparison/explanations.py", "sum_of_weights"): "the weights of any simulated sample have a sum",
    ("common/comparison/reading.py", "sum_of_weights"): "the weights of any simulated sample have a sum",
    ("workers/analysis/result.py", "sum_of_weights"): "the weights of any simulated sample have a sum",
}


def particular_names() -> set[str]:
    """Names of branches, columns, samples, categories, observables, channels and histograms of all releases."""
    names: set[str] = set()
    for analysis in ANALYSES.values():
        names |= {*analysis.branches, *analysis.events, *analysis.sample_names, *analysis.histograms}
        names |= {one.name for one in (*analysis.categories, *analysis.observables, *analysis.channels)}
        names.add(analysis.model.fine)
    return names - GENERAL


def pattern() -> re.Pattern[str]:
    """Matches a particular name, also as a part of an identifier, any lepton or Higgs, and energies in GeV."""
    names = "|".join(re.escape(name) for name in sorted(particular_names(), key=len, reverse=True))
    return re.compile(
        rf"(?<![A-Za-z0-9])(?:{names})(?![A-Za-z0-9])|m4l|m_?4ℓ|(?i:leptons?|higgs)|\d[\d.,]*\s*GeV", re.UNICODE
    )


def service_files() -> Iterator[Path]:
    for part in SERVICE_FILES:
        path = ROOT / part
        yield from [path] if path.is_file() else (file for file in path.rglob("*") if file.suffix in TEXT)


def is_of_one_analysis(path: Path) -> bool:
    return any(path.is_relative_to(part) for part in OF_ONE_ANALYSIS)


def particulars() -> Iterator[tuple[str, str, int]]:
    """Each file, what it names, and the number of the line: code, comments, text and templates."""
    names = pattern()
    for path in service_files():
        if is_of_one_analysis(path):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in names.findall(line):
                yield path.relative_to(ROOT).as_posix(), found, number


def test_only_the_physics_names_branches_samples_leptons_and_ranges() -> None:
    found = [f"{file}:{line}: {name}" for file, name, line in particulars() if (file, name) not in EXCEPTIONS]
    assert not found


def test_every_exception_is_still_needed() -> None:
    assert EXCEPTIONS.keys() <= {(file, name) for file, name, _ in particulars()}


@pytest.mark.parametrize(
    "text",
    [
        'events["lep_pt"]', "m4l_fine", 'figure("m4l_4mu")', "data_A", "mc_345060.ggH125_ZZ4lep", "zz", "z_ttbar",
        "four_leptons", "the Higgs boson", "SIMULATED_HIGGS_MASS", "115 to 130 GeV", "lead_pt", "scaleFactor_ELE",
    ],
)  # fmt: skip
def test_the_search_finds_names_in_code_and_in_text(text: str) -> None:
    assert pattern().search(text)


@pytest.mark.parametrize("text", ["weight", "data", "signal", "pt_cuts_gev", "pT cuts in GeV", "fuzz", "4 events"])
def test_the_search_leaves_general_words_alone(text: str) -> None:
    assert not pattern().search(text)
