"""What docker-run.sh hands to Compose, and the message key that it generates; with a stub of docker."""

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
    for name, body in (
        ("build-images.sh", ""),
        ("bin/docker", f'echo "$DATA_DIR $RESULTS_DIR $RABBITMQ_TLS_CA $*" >>{folder}/calls'),
    ):
        script = folder / name
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    return folder


def run(project: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [project / "docker-run.sh", *flags],
        env={"PATH": path, "HOME": str(project), **environment},
        cwd=project.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def submission(project: Path) -> str:
    """The arguments of docker with which the run was submitted, after the variables of the mounts."""
    (line,) = [call for call in (project / "calls").read_text().splitlines() if " submit" in call]
    return line


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


def test_an_existing_env_file_is_readable_by_its_owner_only_once_it_has_the_key(project: Path) -> None:
    (project / ".env").write_text("LUMI=5\n")
    (project / ".env").chmod(0o644)
    run(project)
    assert (project / ".env").stat().st_mode & 0o777 == 0o600
    assert KEY.search((project / ".env").read_text())


@pytest.mark.parametrize("line", ["MESSAGE_KEY=my own key of the stack", "export RABBITMQ_PASS='geheim'"])
def test_an_env_file_with_a_secret_becomes_readable_by_its_owner_only(project: Path, line: str) -> None:
    (project / ".env").write_text(f"LUMI=5\n{line}\n")
    (project / ".env").chmod(0o644)
    run(project, MESSAGE_KEY="another key of the stack")
    assert (project / ".env").stat().st_mode & 0o777 == 0o600


def test_an_env_file_without_a_secret_keeps_its_mode(project: Path) -> None:
    (project / ".env").write_text("LUMI=5\n")
    (project / ".env").chmod(0o644)
    run(project, MESSAGE_KEY="my own key of the stack")
    assert (project / ".env").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("what", ["a directory", "no key", "a key"])
def test_a_key_that_cannot_be_kept_privately_is_an_error(project: Path, what: str) -> None:
    if what == "a directory":
        (project / ".env").mkdir()
    else:
        (project / ".env").write_text("MESSAGE_KEY=my own key of the stack\n" if what == "a key" else "")
        (project / "bin" / "chmod").write_text("#!/bin/bash\nexit 1\n")
        (project / "bin" / "chmod").chmod(0o755)
    done = run(project)
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert "a file that only you can read; correct it, or set MESSAGE_KEY" in message


@pytest.mark.parametrize("data", ["https:/me:geheim@host/4lep", "me:geheim@host/4lep", "https:/host/4lep?token=geheim"])
@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_an_address_without_two_slashes_is_refused_and_not_shown(project: Path, data: str, where: str) -> None:
    if where == "file":
        (project / ".env").write_text(f"DATA={data}\n")
    flags = ["--data", data] if where == "flag" else []
    done = run(project, *flags, **({"DATA": data} if where == "environment" else {}))
    assert done.returncode == 2
    assert "an address has two slashes" in done.stderr
    assert "geheim" not in done.stdout + done.stderr


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_paths_of_the_env_file_are_relative_to_it(project: Path, quote: str) -> None:
    (project / "4lep").mkdir()
    (project / "ca.pem").touch()
    lines = ("DATA=4lep", "OUTPUT=out", "RABBITMQ_TLS_CA=ca.pem", "MESSAGE_KEY=my own key of the stack")
    (project / ".env").write_text("".join(f"{line.replace('=', '=' + quote)}{quote}\n" for line in lines))
    run(project, "--release", "demo")
    assert submission(project).startswith(f"{project}/4lep {project}/out ")
    assert submission(project).endswith(" submit --release demo --data /data")


def test_a_certificate_authority_is_mounted_from_the_callers_directory(project: Path) -> None:
    (project.parent / "ca.pem").touch()
    run(project, RABBITMQ_TLS_CA="ca.pem", OUTPUT="out")
    assert f" {project.parent}/out {project.parent}/ca.pem " in submission(project)
    done = run(project, RABBITMQ_TLS_CA="none.pem")
    assert done.returncode == 2
    assert f"RABBITMQ_TLS_CA={project.parent}/none.pem: no such file" in done.stderr


def test_the_file_of_an_analysis_is_copied_to_where_the_services_read_it(project: Path) -> None:
    for content in ("ANALYSIS = 1\n", "ANALYSIS = 2\n"):
        own = project.parent / "own.py"
        own.write_text(content)
        own.chmod(0o600)
        (project / "calls").unlink(missing_ok=True)
        run(project, "--release", "demo", "--analysis", "own.py")
        assert submission(project).endswith(" submit --release demo --analysis own")
        (copied,) = (project / "analyses").iterdir()
        assert (copied.name, copied.read_text(), copied.stat().st_mode & 0o777) == ("own.py", content, 0o644)


def test_the_name_of_an_analysis_is_passed_on(project: Path) -> None:
    run(project, ANALYSIS="own")
    assert submission(project).endswith(" submit --analysis own")
    done = run(project, ANALYSIS="none.py")
    assert done.returncode == 2
    assert f"--analysis '{project.parent}/none.py': no such file" in done.stderr


def test_the_exit_code_is_that_of_the_run_though_compose_ended_before(project: Path) -> None:
    docker = project / "bin" / "docker"
    docker.write_text('#!/bin/bash\ncase "$*" in "compose "*" run "*) exit 1 ;; wait*) echo 0 ;; esac\n')
    assert run(project).returncode == 0


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_given_key_is_used(project: Path, where: str) -> None:
    if where == "file":
        (project / ".env").write_text("MESSAGE_KEY=my own key of the stack\n")
        run(project)
        assert (project / ".env").read_text() == "MESSAGE_KEY=my own key of the stack\n"
    else:
        run(project, MESSAGE_KEY="my own key of the stack")
        assert not (project / ".env").exists()
