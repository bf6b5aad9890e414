"""The scripts' virtual environment is made anew where the one that is there cannot be used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import wait_until

LISTS = ("pyproject.toml", "constraints.txt", "requirements.txt", "monitoring/requirements.txt")
SCRIPT = '. "$1/venv.sh"; use_venv "$1" "$2" "a megabyte" -r "$2.txt"; python -c "import sys; print(sys.prefix)"'
#: Makes environments without pip, whose installation takes seconds; instead, they have this one.
PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    {sys.executable} -m venv --without-pip "$3" && exec cp -R "$(dirname "$0")/pip" "$3"/lib/python3*/site-packages/
    exit 1
fi
exec {sys.executable} "$@"
"""
#: Does what the list asks for, and notes what it was asked for.
PIP = """
import pathlib, sys, time
command, *rest = sys.argv[1:]
if command == "--version":
    sys.exit()
asked = (pathlib.Path(sys.prefix).parent / "requirements.txt").read_text()
if command == "install":
    (pathlib.Path(sys.prefix) / "asked").write_text(" ".join(rest))
    if "slow" in asked:
        time.sleep(60)
    sys.exit("no-such-package" in asked)
elif "does-not-fit" in asked:
    print("this needs another version")
    sys.exit(1)
"""


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


def started(root: Path, name: str = "requirements", **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHON": str(root.parent / "python"), **environment}
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", SCRIPT, "run.sh", str(root), name],
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def used(root: Path, name: str = "requirements", **environment: str) -> tuple[int, str, str]:
    """The exit code, the environment that was activated, and what was printed for the user."""
    process = started(root, name, **environment)
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


def of_another_python(root: Path) -> Path:
    packages = root / ".venv" / "requirements.packages"
    packages.write_text(packages.read_text().replace(f"3 {sys.version_info.minor} ", "3 4 "))
    return root


def of_other_packages(root: Path) -> Path:
    (root / "constraints.txt").write_text("# another line\n")
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
        of_another_python,
        of_other_packages,
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
    assert "a megabyte" in told
    assert not (project / ".venv" / "left-over").exists()
    assert not list(project.glob(".venv.*"))


def test_a_complete_environment_is_used_as_it_is(project: Path) -> None:
    assert used(project)[0] == 0
    assert used(project) == (0, str(project / ".venv"), "")


def test_a_complete_environment_is_used_whatever_python3_is_unless_python_names_one(project: Path) -> None:
    assert used(project)[0] == 0
    commands = project.parent / "commands"
    commands.mkdir()
    executable(commands / "python3", "#!/bin/sh\nexit 1\n")
    path = f"{commands}:{os.environ['PATH']}"
    assert used(project, PYTHON="", PATH=path) == (0, str(project / ".venv"), "")
    assert used(project, PYTHON="python3", PATH=path)[0] == 2


def test_an_environment_of_a_python_behind_two_links_is_made_once(project: Path) -> None:
    installed = project.parent / "installed"
    (installed / "bin").mkdir(parents=True)
    (installed / "current").symlink_to(sys.base_prefix)
    linked = installed / "bin" / "python3"
    linked.symlink_to(f"../current/bin/python3.{sys.version_info.minor}")
    executable(project.parent / "python", PYTHON.replace(sys.executable, str(linked)))
    commands = project.parent / "commands"
    commands.mkdir()
    shutil.copy(project.parent / "python", commands / "python3")
    shutil.copytree(project.parent / "pip", commands / "pip")
    for python in ("", "python3"):
        shutil.rmtree(project / ".venv", ignore_errors=True)
        environment = {"PYTHON": python, "PATH": f"{commands}:{os.environ['PATH']}"}
        assert "installing packages" in used(project, **environment)[2]
        assert used(project, **environment) == (0, str(project / ".venv"), "")


def test_the_scripts_of_an_environment_name_its_place(project: Path) -> None:
    assert used(project)[0] == 0
    texts = [path.read_text() for path in (project / ".venv" / "bin").iterdir() if not path.is_symlink()]
    assert any(str(project / ".venv") in text for text in texts)
    assert not any(".venv.new" in text for text in texts)


@pytest.mark.parametrize("before", [False, True])
def test_an_installation_that_is_killed_leaves_what_was_there(project: Path, before: bool) -> None:
    if before:
        assert used(project)[0] == 0
    (project / "requirements.txt").write_text("slow\n")
    process = started(project)
    wait_until((project / ".venv.new" / "asked").exists, "packages are installed", 30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (project / "requirements.txt").write_text("")
    assert (project / ".venv").exists() == before
    code, prefix, told = used(project)
    assert (code, prefix) == (0, str(project / ".venv"))
    assert ("installing packages" in told) != before


def test_packages_that_another_script_has_installed_are_kept(project: Path) -> None:
    (project / "others.txt").touch()
    assert used(project)[0] == 0
    assert used(project, "others")[0] == 0
    assert (project / ".venv" / "asked").read_text().endswith("-r others.txt -r requirements.txt")
    assert used(project) == (0, str(project / ".venv"), "")


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


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("no-such-package", "the packages could not be installed"),
        ("does-not-fit", "the installed packages do not fit together: this needs another version"),
    ],
)
def test_packages_that_cannot_be_installed_are_refused(project: Path, asked: str, problem: str) -> None:
    (project / "requirements.txt").write_text(f"{asked}\n")
    code, _, told = used(project)
    assert code == 2
    assert problem in told
    assert not list(project.glob(".venv*"))
    (project / "requirements.txt").write_text("")
    assert used(project)[0] == 0
