"""The imports of every module follow the rules in ARCHITECTURE.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def test_no_service_imports_another(service: str) -> None:
    others = [f"workers.{other}" for other in SERVICES if other != service]
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
