"""Own analyses in complete runs: the same bits on a broker, several at once, and refusals in words."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common import settings, topology
from common.messages import StatusRequest
from common.settings import RunSettings
from common.submission import Outcome, follow, submit
from common.transport.dead_letters import dead_letters, requeue
from common.transport.rabbitmq import RabbitMQTransport
from physics import ANALYSES
from tests.integration.test_command import run as command
from tests.support.paths import ROOT
from tests.support.runs import QuietDisplay, before_deadline, numbers
from tests.support.waiting import wait_until
from tests.support.workers import Workers
from workers.embedded import EmbeddedServices

EXAMPLES = ROOT / "examples"
DEMO = RunSettings(release="demo", demo_events=5_000, chunk_entries=1_000, plots=False)

#: A text in place of a number, which is not found when the file is loaded.
WITHOUT_RESULT = """from dataclasses import replace
from physics import ANALYSES as HZZ4L
SHIPPED = HZZ4L["demo"]
UNCERTAINTY = replace(SHIPPED.model.normalisations[0])
object.__setattr__(UNCERTAINTY, "relative", "0.017")
ANALYSIS = replace(SHIPPED, model=replace(SHIPPED.model, normalisations=(UNCERTAINTY,)))
"""


@pytest.fixture
def folder(workers: Workers) -> Path:
    """The folder where the services of this test read own analyses."""
    (workers.folder / "analyses").mkdir()
    return workers.folder / "analyses"


def resolved(folder: Path, name: str, run: RunSettings = DEMO) -> RunSettings:
    return ANALYSES.in_folder(folder).resolve(replace(run, analysis=name))


def embedded(folder: Path, name: str, cache: Path, run: RunSettings = DEMO, edit: str | None = None) -> Outcome:
    """A run; with ``edit``, its chunks are read by a worker process, after the file was replaced by this text."""
    read = replace(settings.read({"CACHE": str(cache), "ANALYSES_DIR": str(folder)}), run=resolved(folder, name, run))
    with EmbeddedServices(read, processes=0 if edit is None else 1) as services:
        if edit is not None:
            (folder / f"{name}.py").write_text(edit)
            services.prepare()
        session = services.transport.open([topology.follower("run")])
        submit(session, "run", read.run)
        return follow(session, "run", ANALYSES, QuietDisplay(), services.is_alive)


def on_broker(workers: Workers, *runs: RunSettings) -> list[Outcome]:
    """Submit runs to the services at the same time; returns how each of them ended."""
    transport = RabbitMQTransport(workers.settings, connect_timeout_s=30)
    with ExitStack() as stack:
        sessions = []
        for number, run in enumerate(runs):
            run_id = f"run-{run.digest}-{number}"
            session = transport.open([topology.follower(run_id)], prefetch=100)
            stack.callback(session.close)
            submit(session, run_id, run)
            sessions.append((run_id, session))
        return [follow(session, of, ANALYSES, QuietDisplay(), before_deadline()) for of, session in sessions]


def test_a_file_may_be_edited_during_an_embedded_run_of_its_earlier_code(tmp_path: Path, cache: Path) -> None:
    shutil.copy(EXAMPLES / "zz4l.py", tmp_path)
    run = replace(DEMO, plots=True)
    expected = numbers(embedded(tmp_path, "zz4l", cache, run))

    edited = embedded(tmp_path, "zz4l", cache, run, edit="edited = ")

    assert numbers(edited) == expected
    assert edited.result is not None
    assert edited.result["fit"] is not None
    assert "fit_postfit.png" in edited.files


@pytest.mark.slow
@pytest.mark.broker
def test_analyses_at_once_and_a_changed_one_give_the_bits_of_embedded_runs(
    workers: Workers, folder: Path, cache: Path
) -> None:
    names = ("zz4l", "hzz4l_tight", "hzz4l")
    for name in names[:2]:
        shutil.copy(EXAMPLES / f"{name}.py", folder)
    expected = [numbers(embedded(folder, name, cache)) for name in names]
    assert len(set(expected)) == len(names)
    workers.start_all(data_processors=2)
    assert [numbers(one) for one in on_broker(workers, *(resolved(folder, name) for name in names))] == expected

    tight = (folder / "hzz4l_tight.py").read_text()
    (folder / "hzz4l_tight.py").write_text(tight.replace("< 20.0", "< 10.0"))
    changed = numbers(embedded(folder, "hzz4l_tight", cache))
    assert changed not in expected
    (one, other) = on_broker(workers, resolved(folder, "hzz4l_tight"), resolved(folder, "zz4l"))
    assert (numbers(one), numbers(other)) == (changed, expected[0])
    assert one.result is not None
    assert other.result is not None
    assert one.result["analysis"] == "hzz4l_tight"
    assert one.result["provenance"]["analysis_sha256"] == resolved(folder, "hzz4l_tight").analysis_sha256
    fit = other.result["fit"]
    assert 0.5 < fit["signal_strength"] < 1.5
    assert (fit["significance_observed"], fit["cls_mu1"]) == (None, None)
    assert not {"upper_limit", "limit_scan"} & fit.keys()


@pytest.mark.slow
@pytest.mark.broker
def test_a_run_completes_once_a_service_that_lacked_the_code_has_it(
    workers: Workers, folder: Path, cache: Path
) -> None:
    shutil.copy(EXAMPLES / "zz4l.py", folder)
    expected = numbers(embedded(folder, "zz4l", cache))
    lacking = workers.folder / "lacking"
    lacking.mkdir()
    for service in ("data_loader", "analysis", "visualisation"):
        workers.start(service)
    workers.start("data_processor", ANALYSES_DIR=str(lacking))
    run = resolved(folder, "zz4l")
    run_id = f"run-{run.digest}-0"

    for words in (
        f"data-processor has no analysis 'zz4l': {lacking}/zz4l.py does not exist; put the file there, "
        "then requeue the dead letter",
        f"data-processor has other code of the analysis 'zz4l' than the run: the SHA-256 of {lacking}/zz4l.py is ",
    ):
        if (lacking / "zz4l.py").exists():
            requeue(workers.settings, run_id)
        else:
            on_broker(workers, run)
        # The run ends again with each requeued chunk that fails again.
        wait_until(partial(all_problems_say, workers, run_id, words), "each chunk failed for this reason", 60)
        found = dead_letters(workers.settings)
        assert {dead_letter.queue for dead_letter in found} == {"events"}
        assert all(words in str(dead_letter.problem) for dead_letter in found)
        (lacking / "zz4l.py").write_text("# nothing\n" + (EXAMPLES / "zz4l.py").read_text())

    shutil.copy(EXAMPLES / "zz4l.py", lacking)
    requeue(workers.settings, run_id)
    assert wait_until(lambda: complete(workers, run_id), "the run was complete", 60) == expected


@pytest.mark.slow
@pytest.mark.broker
def test_a_visualisation_without_the_code_says_so_and_draws_once_it_has_it(
    workers: Workers, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "zz4l.py", folder)
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for service in ("data_loader", "data_processor", "analysis"):
        workers.start(service)
    workers.start("visualisation", ANALYSES_DIR=str(lacking))
    run = resolved(folder, "zz4l", replace(DEMO, samples=("data_A", "llll")))
    (outcome,) = on_broker(workers, run)
    assert f"visualisation has no analysis 'zz4l': {lacking}/zz4l.py does not exist" in str(outcome.problem)
    shutil.copy(EXAMPLES / "zz4l.py", lacking)
    requeue(workers.settings)
    run_id = f"run-{run.digest}-0"
    wait_until((workers.folder / "service-results" / run_id / "result.json").exists, "the run was drawn", 60)
    assert followed(workers, run_id).result is not None


@pytest.mark.broker
def test_a_run_of_an_analysis_that_no_service_has_fails_in_words(
    workers: Workers, folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    shutil.copy(EXAMPLES / "hzz4l_tight.py", own / "mine.py")
    workers.start("data_loader")
    workers.start("analysis")
    (outcome,) = on_broker(workers, resolved(own, "mine"))
    assert f"data-loader has no analysis 'mine': {folder}/mine.py does not exist" in str(outcome.problem)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("< 20.0", "< 1 / 0", "own.py:8: step 'z1_mass' raised ZeroDivisionError"),
        ("leptons.pt_gev(3)", "leptons.pt_gev(4)", "own.py:10: observable 'last_pt' raised IndexError"),
        ("processor_steps=(*shipped.processor_steps", "loader_steps=(*shipped.loader_steps", None),
        ("        processor_steps=", "        columns=lambda *chunk: {}, processor_steps=", "columns returned no"),
    ],
    ids=["a step that raises", "an observable that raises", "no mistake", "no columns"],
)  # fmt: skip
def test_a_mistake_is_said_by_the_run(old: str, new: str, words: str | None, tmp_path: Path, cache: Path) -> None:
    source = (EXAMPLES / "hzz4l_tight.py").read_text()
    assert source.count(old) == 1
    (tmp_path / "own.py").write_text(source.replace(old, new))
    outcome = embedded(tmp_path, "own", cache, replace(DEMO, samples=("data_A", "Zee")))
    assert outcome.result is not None
    assert outcome.result["complete"] is (words is None)
    assert words is None or words in outcome.result["problems"][0]


@pytest.mark.broker
def test_a_run_whose_result_cannot_be_made_fails_embedded_and_on_a_broker(
    workers: Workers, folder: Path, cache: Path
) -> None:
    (folder / "own.py").write_text(WITHOUT_RESULT)
    reason = "its result cannot be made: TypeError: unsupported operand"
    assert reason in str(embedded(folder, "own", cache).problem)
    workers.start_all()
    (outcome,) = on_broker(workers, resolved(folder, "own"))
    assert reason in str(outcome.problem)


def test_a_file_that_cannot_be_used_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import nothing_of_this_name\n")
    done = command(tmp_path, "--release", "demo", "--analysis", "own.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "analysis.py: own.py:1: the file cannot be imported: ModuleNotFoundError: No module named "
        "'nothing_of_this_name'\n"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_command_runs_and_checks_a_file(tmp_path: Path) -> None:
    example = str(EXAMPLES / "zz4l.py")
    done = command(tmp_path, "--release", "demo", "--demo-events", "5000", ANALYSIS=example, PLOTS="1")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert {"m4l.png", "z_pt.pdf", "m4l_4e.png", "fit_postfit.png", "workspace.json", "histograms.root"} <= files
    assert "fit_limits.png" not in files
    done = command(tmp_path, "check", example)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"{example}: no mistakes found\n")
    (tmp_path / "own.py").write_text((EXAMPLES / "zz4l.py").read_text().replace("leptons.mass", "leptons.m"))
    done = command(tmp_path, "check", "own.py")
    assert done.returncode == 1
    assert "own.py:26: observable 'm4l' raised AttributeError: 'FourLeptons' object has no attribute 'm'" in done.stderr


def followed(workers: Workers, run_id: str) -> Outcome:
    """The outcome of a run that was submitted before."""
    session = RabbitMQTransport(workers.settings, connect_timeout_s=30).open([topology.follower(run_id)], prefetch=100)
    with ExitStack() as stack:
        stack.callback(session.close)
        session.publish([StatusRequest(run_id)])
        return follow(session, run_id, ANALYSES, QuietDisplay(), before_deadline())


def all_problems_say(workers: Workers, run_id: str, words: str) -> bool:
    """Whether a run, which ended and is not complete, has these words in each of its problems."""
    outcome = followed(workers, run_id)
    assert outcome.result is not None
    assert not outcome.result["complete"]
    return all(words in problem for problem in outcome.result["problems"])


def complete(workers: Workers, run_id: str) -> str | None:
    outcome = followed(workers, run_id)
    return (
        numbers(outcome) if outcome is not None and outcome.result is not None and outcome.result["complete"] else None
    )
