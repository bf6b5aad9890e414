"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from common.settings import BrokerSettings
from tests.support.paths import ROOT

NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture
def clone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a kernel import analysis, and run small demos."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CACHE", str(cache))
    monkeypatch.setenv("DEMO_EVENTS", "20000")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def execute(name: str) -> list[dict[str, Any]]:
    """Run a notebook in its folder; returns the outputs of all cells."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs: list[dict[str, Any]], kind: str) -> list[str]:
    """What the outputs show in one form, for example ``text/html``."""
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebooks_are_kept_without_outputs(name: str) -> None:
    text = (NOTEBOOKS / name).read_text()
    notebook = json.loads(text)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert len(text) < 8_000


@pytest.mark.slow
def test_the_notebook_of_the_higgs_boson_shows_bars_tables_and_plots(clone: Path) -> None:
    outputs = execute("higgs.ipynb")
    html = shown(outputs, "text/html")
    assert sum("events analysed" in text for text in html) == 2
    assert sum("<table>" in text and "data_A" in text for text in html) == 2
    assert len(shown(outputs, "image/png")) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_notebook_of_an_own_analysis_shows_its_steps_and_a_mistake(clone: Path) -> None:
    outputs = execute("own_analysis.ipynb")
    assert sum("<table>" in text and "on\nshell" in text for text in shown(outputs, "text/html")) == 2
    printed = "".join(output.get("text", "") for output in outputs)
    assert printed.count("times the expectation") == 2
    assert re.search(r"narrow_z\.py:\d+: observable 'm4l' raised AttributeError", printed)


@pytest.mark.slow
@pytest.mark.broker
def test_the_distributed_notebook_gives_the_same_bits_after_a_kill(
    clone: Path, vhost: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, where = f"{vhost.user}:{vhost.password}", f"{vhost.host}:{vhost.port}/{vhost.vhost}"
    monkeypatch.setenv("BROKER", f"amqp://{user}@{where}")
    monkeypatch.setenv("TMPDIR", str(clone))
    outputs = execute("distributed.ipynb")
    assert "killed after" in "".join(output.get("text", "") for output in outputs)
    assert shown(outputs, "text/plain")[-1] == "True"
