"""What docker-run.sh hands to Compose, and what it keeps in .env; with a stub of docker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

KEY = re.compile(r"^MESSAGE_KEY=([0-9a-f]{64})$", re.MULTILINE)
SCRIPTS = ("docker-run.sh", "build-images.sh")
#: Logs its arguments, and prints the variables of .env and of the environment as Compose does. The file ``running``
#: has the containers of a running stack, ``changed`` those to recreate, ``runs`` what analysis.py runs prints, and
#: ``follow`` is the script of the container that follows a run.
DOCKER = """#!/bin/bash
echo "$DATA_DIR|$RESULTS_DIR|$RABBITMQ_TLS_CA|$DATA|$ANALYSIS|$*" >>{0}/calls
case "$*" in
    "context inspect "*) echo unix:///var/run/docker.sock ;;
    "compose config --environment") sed 's/  # .*//; s/[\\"'"'"']//g' "${{COMPOSE_ENV_FILES:-.env}}"; env ;;
    "compose ps --format "*) cat {0}/running 2>/dev/null ;;
    "compose --dry-run "*) cat {0}/changed 2>/dev/null ;;
    exec*" runs --json") cat {0}/runs 2>/dev/null ;;
    compose*" run "*" submit"*) cat {0}/follow 2>/dev/null | bash ;;
    kill*) echo >{0}/interrupted ;;
    wait*) echo "${{CODE:-0}}" ;;
esac
exit 0
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and a stub of docker."""
    folder = tmp_path / "project"
    (folder / "bin").mkdir(parents=True)
    (folder / "analyses").mkdir()
    shutil.copy(ROOT / "docker-run.sh", folder)
    for name, text in (("build-images.sh", "#!/bin/bash\n"), ("bin/docker", DOCKER.format(folder))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
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


def calls(project: Path) -> list[str]:
    """Each call of docker after the variables of the mounts, separated by bars."""
    return (project / "calls").read_text().splitlines() if (project / "calls").exists() else []


def submission(project: Path) -> tuple[str, ...]:
    """DATA_DIR, RESULTS_DIR, RABBITMQ_TLS_CA, DATA, ANALYSIS and the arguments of the latest submission."""
    line = [call for call in calls(project) if "--name" in call][-1]
    return tuple(line.split("|"))


def kept(project: Path) -> dict[str, str]:
    """The variables that the script has kept in .env."""
    return dict(re.findall(r"^(\w+)='(.*)'  # kept by docker-run.sh until --down$", env_file(project), re.MULTILINE))


def env_file(project: Path) -> str:
    return (project / ".env").read_text()


def start(project: Path) -> None:
    """Let the stub say that the stack runs."""
    (project / "running").write_text("analysis 123\ndata-loader 4\ndata-processor 5\ndata-processor 6\n")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["--release", "demo", "--help"]])
def test_help_is_the_scripts_own_and_starts_nothing(project: Path, script: str, flags: list[str]) -> None:
    shutil.copy(ROOT / script, project)
    done = subprocess.run(
        [project / script, *(flags if script == "docker-run.sh" else flags[-1:])],
        env={"PATH": f"{project / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"./{script}" in done.stdout
    assert "set -" not in done.stdout
    assert calls(project) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--relase demo", "unknown argument '--relase'"),
        ("demo", "unknown argument 'demo'"),
        ("--no-plots=1", "unknown argument '1'"),
        ("--release", "--release needs a value"),
        ("--broker=amqp://elsewhere", "--broker is for analysis.py"),
        ("follow", "follow needs a RUN_ID"),
        ("follow RUN --lumi 3", "unknown argument '--lumi'"),
        ("--scale data-loader=0", "--scale data-loader=0: write data-loader=N or data-processor=N"),
        ("--scale analysis=2", "--scale analysis=2: write"),
        ("--scale data-loader=2 --release demo", "unknown argument '--release'"),
        ("--scan analysis=1,2", "--scan analysis=1,2: write data-loader=N,N,.. or data-processor=N,N,.."),
        ("--scan=data-processor=0,2", "--scan data-processor=0,2: write"),
        ("--scan data-processor=2", "--scan data-processor=2: write"),
        ("--scan data-loader=1,2 --events many", "--events many: write a whole number from 1"),
        ("--scan data-loader=1,2 --repeat 0", "--repeat 0: write a whole number from 1"),
        ("--scan data-loader=1,2 --release demo", "unknown argument '--release'"),
        ("--logs nothing", "unknown argument 'nothing'"),
        ("--down now", "unknown argument 'now'"),
        ("compare A B", "compare needs no services; use ./local-run.sh compare"),
    ],
)
def test_unknown_arguments_are_refused_before_docker_is_called(project: Path, arguments: str, message: str) -> None:
    done = run(project, *arguments.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"docker-run.sh: {message}")
    assert calls(project) == []


def test_every_flag_of_a_run_on_a_broker_is_accepted(project: Path) -> None:
    shown = subprocess.run([sys.executable, ROOT / "analysis.py", "--help"], capture_output=True, text=True, check=True)
    options = re.findall(r"^  (--[a-z-]+)( \S+)?", shown.stdout, re.MULTILINE)
    # Those of the services within the command; --broker and --version are not for this script.
    others = {"--broker", "--dry-run", "--page", "--processes", "--version"}
    options = [(name, value) for name, value in options if name not in others]
    assert len(options) > 10
    for name, value in options:
        done = run(project, name, *(["no/such"] if value else []), DOCKER_HOST="ssh://elsewhere")
        assert "on another machine" in done.stderr, name


def test_without_flags_the_settings_of_the_environment_are_submitted(project: Path) -> None:
    assert run(project, RELEASE="demo").returncode == 0
    assert submission(project)[5].endswith(" -T submit")


def test_the_command_has_the_name_of_the_script(project: Path) -> None:
    run(project)
    assert f" --env COMMAND_NAME={project}/docker-run.sh " in submission(project)[5]


def test_a_key_is_generated_once_readable_by_its_owner_only(project: Path) -> None:
    run(project)
    (key,) = KEY.findall(env_file(project))
    assert (project / ".env").stat().st_mode & 0o777 == 0o600
    run(project)
    assert KEY.findall(env_file(project)) == [key]
    assert key not in (project / "calls").read_text()


def test_existing_lines_of_the_env_file_are_kept(project: Path) -> None:
    (project / ".env").write_text("LUMI=5")
    (project / ".env").chmod(0o644)
    run(project)
    assert env_file(project).startswith("LUMI=5\n")
    assert len(KEY.findall(env_file(project))) == 1
    assert (project / ".env").stat().st_mode & 0o777 == 0o600


def test_a_given_key_is_used(project: Path) -> None:
    (project / ".env").write_text("MESSAGE_KEY=my own key of the stack\n")
    run(project)
    assert env_file(project).strip() == "MESSAGE_KEY=my own key of the stack"


@pytest.mark.parametrize("what", ["a directory", "not the user's"])
def test_a_key_that_cannot_be_kept_privately_is_an_error(project: Path, what: str) -> None:
    if what == "a directory":
        (project / ".env").mkdir()
    else:
        (project / "bin" / "chmod").write_text("#!/bin/bash\nexit 1\n")
        (project / "bin" / "chmod").chmod(0o755)
    done = run(project)
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert f"{project}/.env must be a file that you can write to and only you can read" in message


def test_what_the_stack_was_started_with_is_kept_until_down(project: Path) -> None:
    (project / ".env").write_text("PAGE_PORT=8081\n")
    data = project.parent / "my data"
    data.mkdir()
    run(project, "--data", str(data), PAGE_PORT="9000", MESSAGE_KEY="a key of the environment", LUMI="3")
    started_with = {
        "DATA_DIR": str(data),
        "PAGE_PORT": "9000",
        "MESSAGE_KEY": "a key of the environment",
    }
    assert kept(project) == started_with
    run(project, PAGE_PORT="9001")
    assert kept(project) == started_with | {"PAGE_PORT": "9001"}
    assert run(project, "--down").returncode == 0
    assert env_file(project) == "PAGE_PORT=8081\n"


def test_every_variable_of_the_services_is_kept(project: Path) -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services["services"].pop("submit")
    services.pop("x-service")
    text = yaml.safe_dump(services)
    used = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z_]+): null$", text, re.MULTILINE))
    run(project, **(dict.fromkeys(used, "1") | {"RABBITMQ_TLS_CA": str(ROOT / "LICENSE")}))
    assert set(kept(project)) == used


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


def test_paths_of_the_env_file_are_relative_to_it(project: Path) -> None:
    (project / "4lep").mkdir()
    (project / "ca.pem").touch()
    (project / ".env").write_text("DATA=4lep\nOUTPUT='out'\nRABBITMQ_TLS_CA=ca.pem\n")
    run(project, "--release", "demo")
    assert submission(project)[:4] == (f"{project}/4lep", f"{project}/out", "", f"{project}/4lep")
    assert submission(project)[5].endswith(" submit --release demo")


def test_a_data_directory_has_the_same_path_in_the_container(project: Path) -> None:
    (project.parent / "my:data").mkdir()
    run(project, "--data", "my:data", DATA="/other")
    data = f"{project.parent}/my:data"
    assert submission(project)[0] == data
    assert submission(project)[5].endswith(f" submit --data {data}")


@pytest.mark.parametrize("flag", ["--data", "--output"])
@pytest.mark.parametrize("path", ["/", "/tmp", "/usr"])
def test_a_directory_that_would_hide_the_containers_own_is_refused(project: Path, flag: str, path: str) -> None:
    done = run(project, flag, path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"docker-run.sh: {flag} {path}: containers have a directory of their own there")


def test_a_certificate_authority_is_mounted_from_the_callers_directory(project: Path) -> None:
    (project.parent / "ca.pem").touch()
    run(project, RABBITMQ_TLS_CA="ca.pem", OUTPUT="out")
    assert submission(project)[1:3] == (f"{project.parent}/out", f"{project.parent}/ca.pem")
    done = run(project, RABBITMQ_TLS_CA="none.pem")
    assert done.returncode == 2
    assert f"RABBITMQ_TLS_CA={project.parent}/none.pem: no such file" in done.stderr


def test_the_file_of_an_analysis_is_copied_to_where_the_services_read_it(project: Path) -> None:
    for content in ("ANALYSIS = 1\n", "ANALYSIS = 2\n"):
        own = project.parent / "own.py"
        own.write_text(content)
        own.chmod(0o600)
        run(project, "--release", "demo", "--analysis", "own.py")
        # The command reads it under the user's own path, which its messages name.
        assert submission(project)[5].endswith(f" submit --release demo --analysis {own}")
        (copied,) = (project / "analyses").iterdir()
        assert (copied.name, copied.read_text(), copied.stat().st_mode & 0o777) == ("own.py", content, 0o644)


def test_the_name_of_an_analysis_is_passed_on(project: Path) -> None:
    run(project, ANALYSIS="own")
    assert submission(project)[4] == "own"
    done = run(project, ANALYSIS="none.py")
    assert done.returncode == 2
    assert f"ANALYSIS={project.parent}/none.py: no such file" in done.stderr


def test_the_exit_code_is_that_of_the_run_though_compose_ended_before(project: Path) -> None:
    (project / "follow").write_text("exit 1\n")
    assert run(project, CODE="0").returncode == 0
    assert run(project, CODE="2").returncode == 2


def test_an_interrupt_reaches_the_container_once(project: Path) -> None:
    os.mkfifo(project / "interrupted")
    (project / "follow").write_text(f"echo following; read -r <{project}/interrupted\n")
    process = subprocess.Popen(
        [project / "docker-run.sh"],
        env={"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "HOME": str(project), "CODE": "130"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "following\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=30) == 130
    assert len([call for call in calls(project) if "|kill --signal INT " in call]) == 1


def test_a_running_stack_is_not_changed_under_a_run(project: Path) -> None:
    start(project)
    (project / "changed").write_text(
        " DRY-RUN MODE -  Container h-data-loader-1  Recreate\n Container h-analysis-1  Running\n"
    )
    (project / "runs").write_text(
        '[{\n "run_id": "OLD",\n "state": "complete"}, {"run_id": "NEW", "state": "running"}]\n'
    )
    done = run(project, PAGE_PORT="9000", COMPOSE_PROJECT_NAME="h")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("docker-run.sh: run NEW is under way")
    assert "would restart data-loader;" in done.stderr
    assert kept(project) == {}
    (project / "runs").write_text("[]\n")
    assert run(project, PAGE_PORT="9000").returncode == 0


def test_the_replicas_that_run_are_kept(project: Path) -> None:
    start(project)
    run(project)
    (line,) = [call for call in calls(project) if " up --detach --wait" in call]
    assert line.endswith(" --scale data-loader=1 --scale data-processor=2")


def test_scale_changes_the_replicas_alone(project: Path) -> None:
    done = run(project, "--scale", "data-processor=3")
    assert done.returncode == 1
    assert "the stack does not run" in done.stderr
    start(project)
    assert run(project, "--scale", "data-processor=3", "--scale=data-loader=2").returncode == 0
    (line,) = [call for call in calls(project) if " up " in call]
    assert "--no-deps --no-recreate --scale data-processor=3 --scale data-loader=2" in line


def test_a_scan_is_done_by_the_monitor_in_the_callers_directory(project: Path) -> None:
    (project / "venv.sh").write_text("use_venv() { :; }\n")
    (project / "bin" / "python").write_text('#!/bin/bash\necho "$PWD|$COMPOSE_PROJECT_NAME|$*"\n')
    (project / "bin" / "python").chmod(0o755)
    (project / ".env").write_text("COMPOSE_PROJECT_NAME=mine\n")
    done = run(project, "--scan=data-processor=1,2", "--events", "1000", "--output", "out")
    assert done.returncode == 0, done.stderr
    monitor = f"{project}/common/cpu_monitor.py scan --platform docker data-processor=1,2 --events 1000 --output out"
    assert done.stdout == f"{project.parent}|mine|{monitor}\n"


@pytest.mark.parametrize("words", ["runs --json", "cancel RUN", "dead-letters --requeue"])
def test_words_about_runs_are_answered_by_the_running_stack(project: Path, words: str) -> None:
    assert "the stack does not run" in run(project, *words.split()).stderr
    start(project)
    assert run(project, *words.split()).returncode == 0
    assert calls(project)[-1].endswith(f" 123 python analysis.py {words}")
    assert not any(" up " in call for call in calls(project))


def test_follow_writes_the_folder_where_the_user_says(project: Path) -> None:
    start(project)
    assert run(project, "follow", "RUN", "--output", "out").returncode == 0
    assert submission(project)[1] == f"{project.parent}/out"
    assert submission(project)[5].endswith(" -T --entrypoint python analysis.py submit follow RUN")


@pytest.mark.parametrize("engine", ["ssh://me@elsewhere", "tcp://10.0.0.5:2375"])
def test_an_engine_on_another_machine_is_refused(project: Path, engine: str) -> None:
    done = run(project, DOCKER_HOST=engine)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("docker-run.sh: the Docker engine is on another machine")


def test_podman_is_refused(project: Path) -> None:
    stub = project / "bin" / "docker"
    stub.write_text(stub.read_text().replace('case "$*" in', 'case "$*" in\n    version) echo "Podman Engine:" ;;', 1))
    done = run(project)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("docker-run.sh: the engine is Podman")


def test_an_image_is_loaded_into_the_engine_by_a_builder_in_a_container(project: Path) -> None:
    shutil.copy(ROOT / "build-images.sh", project)
    done = subprocess.run(
        [project / "build-images.sh"], env={"PATH": f"{project / 'bin'}:{os.environ['PATH']}"}, check=False, timeout=60
    )
    assert done.returncode == 0
    builds = [call for call in calls(project) if "|build " in call]
    assert len(builds) == 4
    assert all("|build --load " in call for call in builds)
