"""Runs from Python: results, errors, what is left behind, and programs that may or may not start processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pika
import psutil
import pytest

import analysis
from common import topology
from common.settings import BrokerSettings
from common.transport.amqp import parameters
from common.transport.dead_letters import dead_letters
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.processes import running_children
from tests.support.runs import numbers_of
from tests.support.waiting import wait_until
from tests.support.workers import Workers

DEMO = {"release": "demo", "demo_events": 5_000, "chunk_entries": 1_000}
#: Two of its files: a run without a fit.
SMALL = {**DEMO, "samples": "data_A,llll"}


@pytest.fixture(scope="module", autouse=True)
def common_cache(cache: Path) -> Iterator[None]:
    """Runs use the cache of all tests, also those of other programs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CACHE", str(cache))
        yield


def left_behind() -> set[str]:
    """Threads and child processes, except those that fsspec and multiprocessing keep until a program ends.

    A thread that Python did not start, for example of a browser's driver, is a dummy.
    """
    kept = ("fsspecIO", "asyncio_", "Dummy-")
    threads = {f"thread {one.name}" for one in threading.enumerate() if not one.name.startswith(kept)}
    children = {f"process {command_line}" for command_line in running_children().values()}
    return threads | {child for child in children if "resource_tracker" not in child}


def program(folder: Path, text: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program that can import analysis."""
    (folder / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, *(arguments or ["program.py"])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def embedded(common_cache: None) -> analysis.Result:
    """The result of a run in this process."""
    return analysis.run(**DEMO)


# --- in this process ----------------------------------------------------------------


def test_runs_in_one_process_are_equal_and_leave_no_thread_and_no_process(
    embedded: analysis.Result, tmp_path: Path
) -> None:
    before = left_behind()
    first = analysis.run(**DEMO)
    second = analysis.run(**DEMO, output=tmp_path, plots=False)
    assert left_behind() <= before
    assert numbers_of(first.document) == numbers_of(second.document) == numbers_of(embedded.document)
    assert len({first.run_id, second.run_id, embedded.run_id}) == 3
    assert first.fit is not None
    assert [path.name for path in tmp_path.iterdir()] == [second.run_id]
    assert numbers_of(analysis.load(tmp_path / second.run_id).document) == numbers_of(second.document)


def test_settings_have_the_values_of_python() -> None:
    result = analysis.run(**DEMO, samples=["llll", "data_A"], pt_cuts=(25, 15.5), lumi=3, fraction=0.5)
    settings = result.document["settings"]
    assert settings["samples"] == ["data_A", "llll"]
    assert settings["pt_cuts"] == [25, 15.5]
    assert (settings["lumi"], settings["fraction"], settings["plots"]) == (3, 0.5, False)
    assert analysis.run(**DEMO, samples="data_A", pt_cuts=()).document["settings"]["pt_cuts"] == []


def test_a_run_within_an_event_loop_works_as_in_a_notebook() -> None:
    async def cell() -> analysis.Result:
        return analysis.run(**SMALL)

    assert asyncio.run(cell()).complete


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lumy": 3}, "no setting 'lumy'; did you mean 'lumi'?"),
        ({"lumi_ifb": 3}, "did you mean 'lumi'?"),
        ({"verbose": 1}, "no setting 'verbose'; choose one of "),
        ({"release": "2031"}, "'2031' is not known; choose one of"),
        ({"release": "demo", "samples": ["Zap"]}, "'Zap'"),
        ({"pt_cuts": ["x"]}, "PT_CUTS='x': 'x' is not a number of GeV"),
        ({"lumi": -1}, "LUMI=-1"),
        ({"data": "nowhere"}, "no such directory"),
        ({"release": "demo", "output": "/dev/null"}, "OUTPUT='/dev/null'"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(options: dict[str, object], message: str) -> None:
    before = left_behind()
    with pytest.raises(analysis.SettingsError) as error:
        analysis.run(**options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert left_behind() <= before


def test_a_loaded_result_of_an_own_analysis_needs_its_file_for_figures_only(tmp_path: Path) -> None:
    example, other = ROOT / "examples" / "zz4l.py", ROOT / "examples" / "hzz4l_tight.py"
    result = analysis.run(**DEMO, analysis=example, output=tmp_path, plots=False)
    text = (
        "import analysis, sys\n"
        "result = analysis.load(sys.argv[1])\n"
        "print(result.histograms['z_pt'].sum().value, len(result.yields), result.workspace is not None)\n"
        "try:\n    result.plot('z_pt')\nexcept analysis.SettingsError as error:\n    print(error)\n"
        "print(analysis.load(sys.argv[1], sys.argv[2]).plot('z_pt'))\n"
        "try:\n    analysis.load(sys.argv[1], sys.argv[3])\nexcept analysis.AnalysisError as error:\n    print(error)\n"
    )
    done = program(tmp_path, text, "program.py", str(tmp_path / result.run_id), str(example), str(other))
    numbers, error, figure, wrong = done.stdout.splitlines()
    assert numbers == f"{result.histograms['z_pt'].sum().value} 4 True"
    assert error.startswith("the analysis 'zz4l' with the SHA-256 ")
    assert error.endswith("give its file, unchanged since the run: analysis.load(FOLDER, analysis=FILE)")
    assert figure.startswith("Figure")
    assert wrong.startswith(f"{other}: this is not the analysis of the run: that is 'zz4l' with the SHA-256 ")


def test_an_incomplete_run_raises_an_error_that_has_the_result(
    embedded: analysis.Result, cache: Path, tmp_path: Path
) -> None:
    assert embedded.complete
    (source,) = cache.glob(f"demo/*-{DEMO['demo_events']}/Data/data_A.4lep.root")
    data = tmp_path / "data"
    (data / "Data").mkdir(parents=True)
    (data / "Data" / source.name).symlink_to(source)
    (data / "Data" / "data_B.4lep.root").write_bytes(b"not a ROOT file")
    with pytest.raises(analysis.IncompleteRunError, match=r"data_B: .*\.result") as error:
        analysis.run(data=data, samples=["data_A", "data_B"], output=tmp_path / "results", plots=False)
    result = error.value.result
    assert not result.complete
    assert result.problems
    assert result.yields["data"]["events_selected"] > 0
    assert analysis.load(tmp_path / "results" / result.run_id).complete is False


# --- programs -------------------------------------------------------------------------

RUN = f"analysis.run(**{DEMO})"


def test_a_script_with_a_guard_runs(tmp_path: Path) -> None:
    done = program(tmp_path, f"import analysis\nif __name__ == '__main__':\n    print({RUN}.complete)\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_script_without_a_guard_gets_one_error_that_says_so(tmp_path: Path) -> None:
    done = program(tmp_path, f"import analysis\n{RUN}\nprint('not reached')\n")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["-c", f"import analysis; print({RUN}.complete)"], ["-i"]])
def test_a_program_without_a_file_runs(tmp_path: Path, arguments: list[str]) -> None:
    done = program(tmp_path, "", *arguments, stdin=f"import analysis\nprint({RUN}.complete)\n")
    assert "True" in done.stdout.splitlines()
    assert "Traceback" not in done.stderr


def test_a_program_from_standard_input_gets_one_error_that_says_so(tmp_path: Path) -> None:
    done = program(tmp_path, "", "-", stdin=f"import analysis\n{RUN}\n")
    assert done.returncode == 1
    assert "read from standard input; save it as a file" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 3], ids=["at once", "in its worker processes"])
def test_an_interrupt_ends_a_run_and_leaves_no_process(tmp_path: Path, processes: int) -> None:
    text = (
        "import analysis, psutil\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        analysis.run(release='demo', demo_events=20_000, chunk_entries=2)\n"
        "    except KeyboardInterrupt:\n"
        "        children = psutil.Process().children(recursive=True)\n"
        "        _, left = psutil.wait_procs(children, timeout=1)  # as git, which may just have been killed\n"
        "        print('interrupted', [one for one in left if 'resource_tracker' not in str(one.cmdline())])\n"
    )
    (tmp_path / "program.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        program = psutil.Process(process.pid)
        wait_until(lambda: len(program.children()) >= processes, "processes were started")
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        output, _ = process.communicate(timeout=60)
    assert output == "interrupted []\n"


# --- on a broker ------------------------------------------------------------------------


def address(broker: BrokerSettings, password: str | None = None) -> str:
    return f"amqp://{broker.user}:{password or broker.password}@{broker.host}:{broker.port}/{broker.vhost}"


@pytest.fixture(scope="module")
def services(broker: Broker, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """The four services, for the tests that leave them as they are."""
    vhost = broker.new_vhost()
    running = Workers(vhost, tmp_path_factory.mktemp("services"), cache)
    running.start_all(data_processors=2)
    yield running
    running.stop()
    broker.delete_vhost(vhost)


@pytest.mark.broker
def test_a_submitted_run_gives_the_result_of_an_embedded_one(services: Workers, embedded: analysis.Result) -> None:
    before = left_behind()
    run = analysis.submit(address(services.settings), **DEMO, plots=False)
    with pytest.raises(TimeoutError, match=f"run {run.run_id} has not ended"):
        run.result(timeout=0)
    result = run.result(timeout=90)
    assert run.done()
    assert run.progress.samples == run.progress.samples_opened == 12
    assert run.progress.total_events == run.progress.events["analysis"] > 0
    assert numbers_of(result.document) == numbers_of(embedded.document)
    assert run.result().document == result.document
    assert left_behind() <= before


def waiting_messages(settings: BrokerSettings) -> int:
    """Return the number of messages that wait in the queues of the services."""
    connection = pika.BlockingConnection(parameters(settings))
    with closing(connection), connection.channel() as channel:
        return sum(channel.queue_declare(one.name, passive=True).method.message_count for one in topology.QUEUES)


@pytest.mark.broker
def test_a_cancelled_run_leaves_the_queues_and_its_neighbour_is_complete(
    services: Workers, embedded: analysis.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left_behind()
    broker = address(services.settings)
    with (
        analysis.submit(broker, **{**DEMO, "chunk_entries": 20}, plots=False) as run,
        analysis.submit(broker, **DEMO, plots=False) as neighbour,
    ):
        wait_until(lambda: run.progress.events.get("analysis"), "chunks were analysed")
        assert analysis.main(["cancel", run.run_id, "--broker", broker]) == 0
        with pytest.raises(analysis.RunError, match=f"run {run.run_id} failed: the run was cancelled"):
            run.result(timeout=60)
        assert run.progress.events["analysis"] < run.progress.total_events
        run.cancel()  # changes nothing
        result = neighbour.result(timeout=90)
    wait_until(lambda: not waiting_messages(services.settings), "the queues were empty")
    assert numbers_of(result.document) == numbers_of(embedded.document)
    assert dead_letters(services.settings) == []
    assert not (services.folder / "service-results" / run.run_id).exists()
    assert left_behind() <= before
    capsys.readouterr()
    assert analysis.main(["runs", "--broker", broker, "--json"]) == 0
    listed = {one["run_id"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed[run.run_id]["state"] == "cancelled"
    assert listed[neighbour.run_id]["state"] == "complete"
    assert listed[neighbour.run_id]["signal_strength"] == result.fit["signal_strength"]
    assert analysis.main(["cancel", neighbour.run_id, "--broker", broker]) == 1
    assert "is not cancelled: the run had ended before" in capsys.readouterr().err
    assert analysis.main(["follow", run.run_id, "--broker", broker]) == 1
    assert "has no result: the run was cancelled" in capsys.readouterr().err
    assert analysis.main(["follow", "nosuch", "--broker", broker]) == 1
    assert "run nosuch is not among the runs of this broker: the latest: " in capsys.readouterr().err


def submitting(broker: str, folder: Path, chunk_entries: int, stdin: int, stderr: int) -> subprocess.Popen[str]:
    """Start the command, and return it when its run is submitted; its first line names the run."""
    flags = ["--release", "demo", "--demo-events", "5000", "--no-plots", "--chunk-entries", str(chunk_entries)]
    return subprocess.Popen(
        [sys.executable, ROOT / "analysis.py", *flags, "--broker", broker],
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


@pytest.mark.broker
def test_an_interrupt_in_a_terminal_asks_whether_to_cancel_the_run(services: Workers, tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with submitting(address(services.settings), tmp_path, 10, terminal, terminal) as command:
        assert command.stdout is not None
        run_id = command.stdout.readline().split()[1]
        command.send_signal(signal.SIGINT)
        shown = b""
        while not shown.endswith(b"[d] "):
            shown += os.read(ours, 1000)
        os.write(ours, b"c\n")
        while b"cancelled" not in shown:
            shown += os.read(ours, 1000)
        command.communicate(timeout=60)
    assert command.returncode == 130
    assert f"run {run_id}: [d]etach, and it goes on, or [c]ancel it? [d] " in shown.decode()
    assert f"analysis.py: run {run_id}: the run was cancelled" in shown.decode()


@pytest.mark.broker
def test_without_a_terminal_a_command_detaches_and_its_run_can_be_followed(services: Workers, tmp_path: Path) -> None:
    broker = address(services.settings)
    with submitting(broker, tmp_path, 1000, subprocess.DEVNULL, subprocess.PIPE) as command:
        assert command.stdout is not None
        run_id = command.stdout.readline().split()[1]
        command.send_signal(signal.SIGINT)
        _, error = command.communicate(timeout=60)
    assert command.returncode == 130
    assert error.startswith(f"analysis.py: run {run_id} goes on; follow it with: analysis.py follow {run_id} --broker ")
    assert services.settings.password not in error.replace(services.settings.user, "")
    assert analysis.main(["follow", run_id, "--broker", broker, "--output", str(tmp_path)]) == 0
    assert analysis.load(tmp_path / run_id).complete


@pytest.mark.broker
def test_a_run_that_no_data_loader_has_begun_is_listed_cancelled_and_followed(
    workers: Workers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = address(workers.settings)
    with analysis.submit(broker, **SMALL, plots=False) as dropped, analysis.submit(broker, **SMALL, plots=False) as run:
        pass  # the runs go on when these are closed

    def states() -> dict[str, str]:
        capsys.readouterr()
        is_listed = analysis.main(["runs", "--broker", broker, "--json"]) == 0
        return {one["run_id"]: one["state"] for one in json.loads(capsys.readouterr().out)} if is_listed else {}

    workers.start("analysis")
    assert wait_until(states, "the analysis answered") == {dropped.run_id: "waiting", run.run_id: "waiting"}
    assert analysis.main(["cancel", dropped.run_id, "--broker", broker]) == 0
    for service in ("data_loader", "data_processor", "visualisation"):
        workers.start(service)
    assert analysis.main(["follow", run.run_id, "--broker", broker, "--output", str(tmp_path)]) == 0
    assert f"run {run.run_id} waits for a data-loader" in capsys.readouterr().out
    assert analysis.load(tmp_path / run.run_id).complete
    assert states() == {dropped.run_id: "cancelled", run.run_id: "complete"}


@pytest.mark.broker
def test_a_command_gets_the_numbers_of_the_embedded_run_through_a_broker(
    services: Workers, embedded: analysis.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--release", "demo", "--demo-events", "5000", "--chunk-entries", "1000", "--no-plots", "--quiet"]
    assert analysis.main([*flags, "--broker", address(services.settings), "--output", str(tmp_path)]) == 0
    folder = capsys.readouterr().out.strip()
    assert numbers_of(analysis.load(folder).document) == numbers_of(embedded.document)


@pytest.mark.broker
def test_a_run_that_is_not_followed_any_more_says_so(vhost: BrokerSettings) -> None:
    before = left_behind()
    with analysis.submit(address(vhost), **DEMO) as run:
        assert "SubmittedRun" in repr(run)
    with pytest.raises(analysis.RunError, match="not followed any more"):
        run.result()
    assert left_behind() <= before


@pytest.mark.broker
def test_a_wrong_password_is_refused_with_what_to_check(vhost: BrokerSettings) -> None:
    before = left_behind()
    with pytest.raises(analysis.BrokerError, match="refuses the user or the password") as error:
        analysis.submit(address(vhost, "wr0ng"), release="demo")
    assert "wr0ng" not in str(error.value)
    assert left_behind() <= before
