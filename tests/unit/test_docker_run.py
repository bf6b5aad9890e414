"""The message key that docker-run.sh generates; with a stub of docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

KEY = re.compile(r"^MESSAGE_KEY=([0-9a-f]{64})$", re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and a stub of docker that logs its arguments."""
    folder = tmp_path / "project"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "docker-run.sh", folder)
    for name, body in (("build-images.sh", ""), ("bin/docker", f'echo "$*" >>{folder}/calls')):
        script = folder / name
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    return folder


def run(project: Path, **environment: str) -> None:
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    subprocess.run(
        [project / "docker-run.sh", "--output", project / "results"],
        env={"PATH": path, "HOME": str(project), **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_key_is_generated_once_readable_by_its_owner_only(project: Path) -> None:
    run(project)
    (key,) = KEY.findall((project / ".env").read_text())
    assert (project / ".env").stat().st_mode & 0o077 == 0
    run(project)
    assert KEY.findall((project / ".env").read_text()) == [key]
    assert key not in (project / "calls").read_text()


def test_existing_lines_of_the_env_file_are_kept(project: Path) -> None:
    (project / ".env").write_text("LUMI=5")
    run(project)
    text = (project / ".env").read_text()
    assert text.startswith("LUMI=5\n")
    assert len(KEY.findall(text)) == 1


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_given_key_is_used(project: Path, where: str) -> None:
    if where == "file":
        (project / ".env").write_text("MESSAGE_KEY=my own key of the stack\n")
        run(project)
        assert (project / ".env").read_text() == "MESSAGE_KEY=my own key of the stack\n"
    else:
        run(project, MESSAGE_KEY="my own key of the stack")
        assert not (project / ".env").exists()
