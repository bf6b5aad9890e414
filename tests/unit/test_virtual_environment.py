"""The scripts' virtual environment is made anew where the one that is there cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LISTS = ("pyproject.toml", "constraints.txt", "requirements.txt", "monitoring/requirements.txt")
SCRIPT = '. "$1/venv.sh"; use_venv "$1" run "a megabyte" -r requirements.txt; python -c "import sys; print(sys.prefix)"'
#: Makes environments without pip, whose installation takes seconds; instead, they have this one.
PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    {sys.executable} -m venv --without-pip "$3" && exec cp -R "$(dirname "$0")/pip" "$3"/lib/python3*/site-packages/
    exit 1
fi
exec {sys.executable} "$@"
"""
PIP = "import pathlib, sys; sys.exit('no-such-package' in pathlib.Path('requirements.txt').read_text())"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without packages."""
    root = tmp_path / "a project"
    for name in (*LISTS, "workers/analysis/requirements.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    shutil.copy(ROOT / "venv.sh", root)
    executable(tmp_path / "python", PYTHON)
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    return root


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def started(root: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHON": str(root.parent / "python"), **environment}
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", SCRIPT, "run.sh", str(root)],
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def used(root: Path, **environment: str) -> tuple[int, str, str]:
    """The exit code, the environment that was activated, and what was printed for the user."""
    process = started(root, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


def without_interpreter(root: Path) -> Path:
    for link in (root / ".venv" / "bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")
    return root


def of_an_interrupted_creation(root: Path) -> Path:
    (root / ".venv" / "made").unlink()
    (root / ".venv" / "pyvenv.cfg").unlink()
    return root


def of_an_interrupted_installation(root: Path) -> Path:
    (root / ".venv" / "installing").touch()
    return root


def of_another_python(root: Path) -> Path:
    made = root / ".venv" / "made"
    made.write_text(made.read_text().replace(f"3 {sys.version_info.minor}", "3 4"))
    return root


def in_a_renamed_folder(root: Path) -> Path:
    return root.rename(root.with_name("another project"))


def locked_by_a_process_that_has_ended(root: Path) -> Path:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (root / ".venv.lock").mkdir()
    (root / ".venv.lock" / "process").write_text(f"{ended.pid}\n")
    return of_an_interrupted_creation(root)


@pytest.mark.parametrize(
    "damage",
    [
        without_interpreter,
        of_an_interrupted_creation,
        of_an_interrupted_installation,
        of_another_python,
        in_a_renamed_folder,
        locked_by_a_process_that_has_ended,
    ],
)
def test_an_environment_that_cannot_be_used_is_made_anew(project: Path, damage: Callable[[Path], Path]) -> None:
    assert used(project)[0] == 0
    (project / ".venv" / "left-over").touch()
    project = damage(project)
    code, prefix, told = used(project)
    assert (code, prefix) == (0, str(project / ".venv"))
    assert "installing packages" in told
    assert not (project / ".venv" / "left-over").exists()
    assert not (project / ".venv.lock").exists()


def test_a_complete_environment_is_used_as_it_is(project: Path) -> None:
    assert used(project)[0] == 0
    assert used(project) == (0, str(project / ".venv"), "")


def test_changed_packages_are_installed_into_the_same_environment(project: Path) -> None:
    assert used(project)[0] == 0
    (project / ".venv" / "left-over").touch()
    (project / "constraints.txt").write_text("# another line\n")
    code, _, told = used(project)
    assert code == 0
    assert "installing packages" in told
    assert "a megabyte" in told
    assert (project / ".venv" / "left-over").exists()


def test_an_environment_that_the_user_made_is_used(project: Path) -> None:
    subprocess.run([project.parent / "python", "-m", "venv", project / ".venv"], check=True)
    (project / ".venv" / "left-over").touch()
    assert used(project)[:2] == (0, str(project / ".venv"))
    assert (project / ".venv" / "left-over").exists()


def test_modules_on_pythonpath_are_not_used(project: Path) -> None:
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pip.py").write_text("raise SystemExit('another pip')")
    assert used(project, PYTHONPATH=str(elsewhere), PYTHONHOME="/nowhere")[:2] == (0, str(project / ".venv"))


def test_two_first_runs_at_once_install_once(project: Path) -> None:
    runs = [started(project), started(project)]
    told = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("installing packages" in text for text in told) == 1


def test_a_python_that_cannot_be_used_is_refused(project: Path) -> None:
    code, _, told = used(project, PYTHON="/nowhere/python3")
    assert code == 2
    assert (
        told == "run.sh: PYTHON=/nowhere/python3 is not a Python 3.11 or later that can be run; correct or unset it\n"
    )


def test_a_python_without_the_venv_module_is_refused_and_leaves_nothing(project: Path) -> None:
    executable(project.parent / "python", PYTHON.replace("-m venv --without-pip", "-m no_venv"))
    code, _, told = used(project)
    assert code == 2
    assert "apt-get install python3-venv" in told
    assert not (project / ".venv").exists()
    assert not (project / ".venv.lock").exists()


def test_a_folder_that_cannot_be_written_is_refused(project: Path) -> None:
    (project / ".venv.lock").touch()
    code, _, told = used(project)
    assert code == 2
    assert "cannot be made" in told


def test_packages_that_cannot_be_installed_are_refused(project: Path) -> None:
    (project / "requirements.txt").write_text("no-such-package\n")
    code, _, told = used(project)
    assert code == 2
    assert "the packages could not be installed" in told
    (project / "requirements.txt").write_text("")
    assert used(project)[0] == 0
