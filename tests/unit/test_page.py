"""The page over HTTP: runs under way, finished, failed and deleted, and what the page must not show."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import socket
import threading
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from common import settings
from common.cancellations import CANCELLED
from common.errors import SettingsError, Unavailable
from common.messages import (
    Chunk,
    FetchProgress,
    FirstFiles,
    Message,
    Progress,
    QueueState,
    QueueStatus,
    Result,
    ResultFiles,
    RunFailed,
    RunStarted,
    ServiceStatus,
    Span,
    StatusRequest,
)
from common.settings import RunSettings
from common.worker_pool import WorkerPool
from physics import ANALYSES
from tests.support.drawing import POOL, all_files
from tests.support.waiting import wait_until
from tests.unit.test_plots import result
from workers.visualisation.archive import Archive
from workers.visualisation.page.live import MAX_RUNS, LiveRuns
from workers.visualisation.plots.pool import DrawingPool
from workers.visualisation.service import Visualisation

RUN = "20260131-120000-2020e-13tev-1f3a"


def document(share: float = 1.0, *, channels: bool = False, **changes: Any) -> dict[str, Any]:
    """Return a result document with every part of the page; ``share`` is the fraction of the events that were read.

    Without ``channels`` it has one histogram.
    """
    made = result(**changes)
    if not channels:
        made["histograms"] = {"m4l": made["histograms"]["m4l"]}
    analysis = ANALYSES[made["release"]]
    made["samples"] = {
        sample.name: {
            "category": sample.category, "events_read": int((sample.entries or 0) * share), "events_selected": 12,
            "yield": 3.25, "yield_error": 0.5, "cutflow": dict.fromkeys(analysis.steps, 12),
        }
        for sample in analysis.samples
    }  # fmt: skip
    made["categories"] = {
        category.name: {"events_selected": 321, "yield": 7.125, "yield_error": 0.25} for category in analysis.categories
    }
    made["settings"] |= {"data": None, "chunk_entries": 50_000}
    made["timing"] = {"seconds": 42.0, "events_per_second": 1234.5}
    return made


def quiet_port() -> int:
    """Return a free port below 32768: the system uses higher ones for outgoing connections."""
    while True:
        port = random.randint(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port


class Site:
    """A visualisation service with its page; the test's thread handles the messages."""

    def __init__(self, output: Path, pool: DrawingPool = POOL, **variables: str) -> None:
        port = quiet_port()
        self.output = output
        self.url = f"http://127.0.0.1:{port}"
        read = settings.read({"OUTPUT": str(output), "PAGE_PORT": str(port), **variables})
        self.service = Visualisation(read, pool=pool)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **options)

    def text(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def handle(self, *messages: Message) -> None:
        for message in messages:
            self.service.handle(message)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "results")
    yield made
    made.service.close()


def finished(output: Path, run_id: str, written: float, content: dict[str, Any] | bytes | None = None) -> Path:
    """Write the folder of a finished run, without plots."""
    folder = output / run_id
    folder.mkdir(parents=True)
    body = content if isinstance(content, bytes) else json.dumps(content or document()).encode()
    (folder / "result.json").write_bytes(body)
    os.utime(folder / "result.json", (written, written))
    return folder


def under_way(run_id: str, done: int = 3) -> list[Message]:
    """The messages of a run of 10 chunks of 1000 events, of which ``done`` have passed all stages."""
    stages: tuple[Any, ...] = ("data-loader", "data-processor", "analysis")
    messages: list[Message] = [Progress("plan", Chunk(run_id, "Zee", 0, 10_000))]
    for number in range(done):
        chunk = Chunk(run_id, "Zee", 1000 * number, 1000 * (number + 1))
        messages += [Progress(stage, chunk) for stage in stages]
    return messages


def status(replica: str, at: float, service: str = "data-processor", **changes: Any) -> ServiceStatus:
    """Return the status of a replica that has handled 1000 events with 0.5 s of CPU time in each second since 0."""
    made = ServiceStatus(
        service, replica, "host", zlib.crc32(replica.encode()), "busy", RUN, "llll[0:500]", int(1000 * at),
        {"events": int(2_000_000 * at)}, at / 2, 100_000_000, 0.0, at, "0.2.0",
    )  # fmt: skip
    return replace(made, **changes)


def status_messages() -> list[Message]:
    """Return what a pipeline with two processors sends in two seconds."""
    queues = {"events": QueueState(12, 16, 0), "selected": QueueState(0, 16, 3), "plans": QueueState(0, None, 0)}
    return [
        *(status(name, at) for at in (100.0, 101.0) for name in ("one", "two")),
        *(status("loader", at, "data-loader", state="waiting") for at in (100.0, 101.0)),
        QueueStatus(queues, 101.0),
    ]


def spans(start: float, redeliveries: int = 0) -> tuple[Span, ...]:
    """Return what happened to a chunk: read in 0.5 s, selected in 0.25 s, added in 0.25 s."""
    return (
        Span("read", "data-loader", "loader", start, start + 0.5),
        Span("waited", "data-processor", "one", start + 0.5, start + 0.75, redeliveries),
        Span("selected", "data-processor", "one", start + 0.75, start + 1.0, redeliveries),
        Span("added", "analysis", "analysis", start + 1.0, start + 1.25),
    )


def parts(site: Site, run_id: str) -> str:
    """Return the HTML of all parts of a run's page."""
    tabs = ("", "/pipeline", "/timeline", "/fit", "/tables", "/files", "/settings")
    return "".join(site.text(f"/runs/{run_id}{tab}") for tab in tabs)


def without_tags(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_nothing_listens_unless_a_port_is_set(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    service = Visualisation(settings.read({"OUTPUT": str(tmp_path)}))
    port = str(quiet_port())
    embedded = Visualisation(settings.read({"OUTPUT": str(tmp_path), "PAGE_PORT": port}), keep=False)
    assert set(threading.enumerate()) <= threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), 5)
    service.close()
    embedded.close()


def test_a_port_that_is_taken_is_an_error_at_the_start(site: Site) -> None:
    with pytest.raises(OSError, match=r"PAGE_PORT=\d+: Address already in use"):
        Visualisation(settings.read({"PAGE_PORT": site.url.rpartition(":")[2]}))


def test_a_page_without_runs_says_so(site: Site) -> None:
    text = without_tags(site.text("/"))
    assert "No run is under way" in text
    assert "No run has finished yet" in text


def test_a_run_under_way_is_shown_with_the_events_and_chunks_of_each_stage(site: Site) -> None:
    site.handle(*under_way(RUN), Progress("data-loader", Chunk(RUN, "Zee", 3000, 4000)))
    text = without_tags(site.text(f"/runs/{RUN}"))
    assert "loaded 4,000 4 " in text
    assert "selected 3,000 3 " in text
    assert "analysed 3,000 3 " in text
    assert "3,000 of 10,000 events" in without_tags(site.text("/"))


def test_a_run_whose_events_are_all_analysed_is_shown_as_fitting(site: Site) -> None:
    partial = document(0.0, complete=False)
    partial["samples"] = {"Zee": partial["samples"]["Zee"]}
    site.handle(*under_way(RUN, done=9), Result(RUN, False, partial))
    assert "all analysed" not in site.text(f"/runs/{RUN}")
    site.handle(*under_way(RUN, done=10))
    assert "all analysed, fitting" in site.text(f"/runs/{RUN}")
    assert "all analysed, fitting" in site.text("/")


def test_the_pipeline_shows_replicas_and_queues(site: Site) -> None:
    assert "not yet sent their state" in site.text("/pipeline")
    site.handle(*status_messages(), *under_way(RUN))
    for path in ("/pipeline", f"/runs/{RUN}", f"/runs/{RUN}/pipeline"):
        text = without_tags(site.text(path))
        assert "queue events: 12 messages; data-processor: 2 busy. queue selected: 0 messages" in text
        assert "2 of 2 busy 2,000 events/s 1.0 cores, 200 MB" in text
        assert "limit 16 4.0 MB/s" in text
        assert "✕ 3 dead" in text
    assert "data-processor one busy llll[0:500] 1,000 0.50 100 MB" in without_tags(site.text("/pipeline"))


def test_the_timeline_of_a_run_under_way_shows_what_each_replica_did(site: Site) -> None:
    first, again = Chunk(RUN, "Zee", 0, 1000), Chunk(RUN, "Zee", 1000, 2000)
    site.handle(*under_way(RUN, done=0), Progress("analysis", first, spans(1000.0)))
    site.handle(Progress("analysis", again, spans(1001.0, redeliveries=1)))
    text = without_tags(site.text(f"/runs/{RUN}/timeline"))
    assert "data-loader loader 2 44 %" in text
    assert "data-processor one, 1 again 2 22 %" in text
    assert "data-loader: read 1.0 s 500 ms 500 ms 2" in text
    assert "waited in the queue of the data-processor 0.5 s 250 ms" in text


def test_a_chunk_that_is_reported_twice_counts_once(site: Site) -> None:
    site.handle(*under_way(RUN), *under_way(RUN))
    assert "analysed 3,000 3 " in without_tags(site.text(f"/runs/{RUN}"))


def test_a_file_is_shown_as_fetching_until_it_is_opened(site: Site) -> None:
    site.handle(FetchProgress(RUN, "Zee", 12_300_000, 45_600_000))
    assert "Fetching Zee: 12.3 MB of 45.6 MB" in site.text(f"/runs/{RUN}")
    site.handle(*under_way(RUN))
    assert "FetchProgress" not in site.text(f"/runs/{RUN}")


def test_throughput_and_time_left_follow_from_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    live = LiveRuns(lambda run_id: False)
    for message in under_way(RUN, done=5):
        live.update(message)
        now += 0.1
    now = 110.0
    run = live.get(RUN)
    assert run is not None
    analysed = run.stages[-1]
    assert analysed.events == 5000
    assert analysed.throughput == pytest.approx(5000 / 9.7, rel=0.01)
    assert analysed.seconds_left == pytest.approx(9.7, rel=0.01)
    assert run.state == "running"
    now = 200.0
    run = live.get(RUN)
    assert run is not None
    assert run.state == "silent"


def events_of(answer: requests.Response) -> Iterator[str]:
    """Yield the data of a stream's events."""
    lines: list[str] = []
    for line in answer.iter_lines(decode_unicode=True):
        if line.startswith("data: "):
            lines.append(line[6:])
        elif not line and lines:
            yield "\n".join(lines)
            lines = []


def test_an_open_page_is_updated_with_progress_plot_and_end_of_the_run(site: Site) -> None:
    site.handle(*under_way(RUN), Result(RUN, False, document(0.001, run_id=RUN, complete=False)))
    with site.get(f"/runs/{RUN}/events", stream=True) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = events_of(stream)
        assert "3,000" in next(events)
        with_plot = next(event for event in events if "partial.png" in event)
        (address,) = re.findall(r'src="([^"]*partial[^"]*)"', with_plot)
        assert site.get(address).content.startswith(b"\x89PNG")
        site.handle(*under_way(RUN, done=7))
        assert any("7,000" in event for event in events)
        site.handle(Result(RUN, True, document(run_id=RUN)))
        rest = list(events)  # the stream ends by itself
    assert rest[-1] == "end"
    assert 'class="badge complete"' in rest[-2]


class CountingPool(DrawingPool):
    """Counts what is drawn."""

    submitted = 0

    def submit(self, *arguments: Any) -> Future[dict[str, bytes]]:
        self.submitted += 1
        return super().submit(*arguments)


def test_a_run_is_drawn_only_while_somebody_views_it(tmp_path: Path) -> None:
    pool = CountingPool(1)
    site = Site(tmp_path, pool=pool)
    site.text("/")
    site.handle(*under_way(RUN), Result(RUN, False, document(0.5)), Result(RUN, False, document(0.6)))
    site.text("/")
    assert pool.submitted == 0
    assert site.get(f"/runs/{RUN}/partial.png").content.startswith(b"\x89PNG")
    assert pool.submitted == 1
    site.service.close()
    pool.close()


def test_a_partial_result_that_is_not_valid_does_not_break_the_page(site: Site) -> None:
    site.handle(Result(RUN, False, {"samples": [1], "histograms": {"m4l": "x"}}))
    assert RUN in site.text("/")
    assert RUN in site.text(f"/runs/{RUN}")
    assert site.get(f"/runs/{RUN}/partial.png").status_code == 404


def test_a_finished_run_has_its_plots_tables_settings_and_files(site: Site) -> None:
    site.handle(Result(RUN, True, document(run_id=RUN, channels=True)))
    html = parts(site, RUN)
    names = {path.name for path in (site.output / RUN).iterdir()}
    assert {"m4l.png", "m4l_4mu.pdf", "histograms.root", "result.json"} <= names
    for name in names:
        assert f'href="/runs/{RUN}/files/{name}"' in html
        answer = site.get(f"/runs/{RUN}/files/{name}")
        assert answer.content == (site.output / RUN / name).read_bytes()
    text = without_tags(html)
    for part in (
        "Four-lepton mass, 4μ channel",
        "Z, tt\N{COMBINING MACRON}",
        "321 7.12 0.25",
        "llll 12 12",
        "20, 15, 10",
        "42 s",
    ):
        assert part in text
    pictures = re.findall(r"<img[^>]*>", html)
    assert len(pictures) == 4  # one of each plot, not one of each format
    assert all(re.search(r'alt="Four-lepton mass[^"]*from 80 to 250 GeV', picture) for picture in pictures)
    archive = zipfile.ZipFile(io.BytesIO(site.get(f"/runs/{RUN}/all.zip").content))
    assert {name: archive.read(f"{RUN}/{name}") for name in names} == {
        path.name: path.read_bytes() for path in (site.output / RUN).iterdir()
    }
    row = without_tags(site.text("/"))
    assert f"{RUN} complete" in row
    assert re.search(r"2020e-13tev, 10 fb⁻¹ \d+ 20, 15, 10 – – ", row)


def test_the_timeline_of_a_run_links_to_a_recording_of_the_cpu_monitor(site: Site) -> None:
    folder = finished(site.output, RUN, 1.7e9)
    span = {"ph": "X", "name": "read", "ts": 1e6, "dur": 5e5, "pid": 1, "tid": 1}
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": [span]}))
    link = f'<a href="/runs/{RUN}/files/cpu.csv">'
    assert link not in site.text(f"/runs/{RUN}/timeline")
    (folder / "cpu.csv").write_text("time,service\n")
    assert link in site.text(f"/runs/{RUN}/timeline")


def test_plots_and_numbers_of_a_fit_are_shown_with_captions(site: Site) -> None:
    fit = {
        "signal_strength": 1.25,
        "significance_observed": 3.5,
        "parameters": {
            "luminosity": {"value": 1.01, "error": 0.017},
            "mc_statistics[2]": {"value": 1.1, "error": 0.2},
        },
        "yields": {"postfit": {"zz": {"yield": 250.5}}},
        "correlations": {"names": ["mu"], "matrix": [[1.0]]},
        "mass": {"value_gev": 124.96, "error_gev": 1.54, "interval_gev": [123.4, 126.5], "problem": None},
    }
    folder = finished(site.output, RUN, 1.7e9, document(fit=fit))
    for name in ("fit_postfit.png", "fit_pulls.png", "fit_correlations.png", "fit_likelihood.png", "something_new.png"):
        (folder / name).write_bytes(b"\x89PNG")
    text = without_tags(parts(site, RUN))
    for part in (
        "Four-lepton mass after the fit", "Pulls of the nuisance parameters", "Correlations of the fit",
        "Likelihood scan of the signal strength μ", "something new", "Signal strength μ 1.25",
        "Significance, observed [σ] 3.5", "Luminosity 1.010 0.017", "Yields, postfit Name yield ZZ* 250.5",
        "Significance 3.5 σ", "s mass 125.0 ± 1.5 GeV",
        "MC statistics of each bin Name value error 90–95 GeV 1.10 0.20",
        "Mass Name value value gev 125.0 error gev 1.5",
    ):  # fmt: skip
        assert part in text


def test_toy_and_incomplete_are_marked_in_the_list_the_title_and_on_the_page(site: Site) -> None:
    content = document(release="demo", toy=True, complete=False, problems=["llll: <its> file ends early"])
    finished(site.output, "demo-1", 1.7e9, content)
    row = without_tags(site.text("/"))
    assert "demo-1 TOY INCOMPLETE" in row
    html = site.text("/runs/demo-1")
    assert "<title>TOY – INCOMPLETE – demo-1</title>" in html
    assert "<strong>TOY</strong>" in html
    assert "<strong>INCOMPLETE</strong>" in html
    assert "llll: &lt;its&gt; file ends early" in html


def test_warnings_are_counted_in_the_list_and_shown_above_the_numbers(site: Site) -> None:
    texts = ["simulation is scaled to <139> fb⁻¹", *(f"llll: reason {number}" for number in range(24))]
    finished(site.output, "warned", 1.7e9, document(warnings=texts))
    finished(site.output, "quiet", 1.6e9)
    text = without_tags(site.text("/"))
    assert "warned complete 25 warnings" in text
    assert "quiet complete 2020-09-13" in text
    html = site.text("/runs/warned")
    assert "<strong>WARNING</strong>" in html
    assert "scaled to &lt;139&gt; fb⁻¹" in html
    assert "and 5 more in result.json" in html
    assert html.index("scaled to &lt;139&gt;") < html.index('class="figures"')
    assert "WARNING" not in site.text("/runs/quiet")


def test_the_window_shows_data_signal_background_and_both_figures(site: Site) -> None:
    window = {
        "low": 115.0, "high": 130.0, "unit": "GeV", "n_data": 25, "n_signal": 9.4416, "n_signal_error": 0.0513,
        "n_background": 26.123, "n_background_error": 4.21, "n_signal_plus_background": 35.5646,
        "n_signal_plus_background_error": 4.2103, "significance": 2.3401, "significance_s_b": 1.8473,
    }  # fmt: skip
    finished(site.output, RUN, 1.7e9, document(window=window))
    text = without_tags(site.text(f"/runs/{RUN}"))
    assert "Data events in 115 to 130 GeV 25" in text
    assert "Expected in 115 to 130 GeV 36 ± 4 9.44 ± 0.05 signal, 26 ± 4 background" in text
    assert "The notebook’s figure 2.34 N/√(B + 0.3·B²), N = S + B S/√B = 1.85" in text


def test_an_older_result_without_the_newer_numbers_is_shown(site: Site) -> None:
    window = {"low": 115.0, "high": 130.0, "n_signal_plus_background": 35.6, "n_background": 26.1, "significance": 2.3}
    content = document(window=window)
    del content["warnings"]
    finished(site.output, RUN, 1.7e9, content)
    assert "35.6 26.1 background" in without_tags(site.text(f"/runs/{RUN}"))


def test_a_result_of_a_release_that_is_not_known_is_shown(site: Site) -> None:
    content = document(channels=True) | {"release": "2030e"}
    (finished(site.output, RUN, 1.7e9, content) / "m4l.png").write_bytes(b"\x89PNG")
    text = without_tags(parts(site, RUN))
    assert "zz 321 7.12 0.25" in text
    assert "Release 2030e" in text
    assert "Expected from simulation" not in text  # which categories are data is not known


def test_the_run_page_names_the_analysis(site: Site) -> None:
    finished(site.output, RUN, 1.7e9)
    assert "Analysis H→ZZ*→4ℓ Release 2020e-13tev" in without_tags(site.text(f"/runs/{RUN}/settings"))


def test_a_failed_run_is_listed_with_the_reason(site: Site) -> None:
    site.handle(RunFailed("lost", "LUMI=-5: a luminosity is a positive number"))
    assert "lost FAILED LUMI=-5: a luminosity is a positive number" in without_tags(site.text("/"))
    assert "<title>FAILED – lost</title>" in site.text("/runs/lost")


def test_a_cancelled_run_is_shown_as_cancelled(site: Site) -> None:
    site.handle(*under_way(RUN), RunFailed(RUN, CANCELLED))
    assert f"{RUN} CANCELLED" in without_tags(site.text("/"))
    assert f"<title>CANCELLED – {RUN}</title>" in site.text(f"/runs/{RUN}")


def ids(html: str) -> list[str]:
    """Return the ids of the runs in the order of the list."""
    return re.findall(r'<tr id="row-([^"]+)"', html)


def test_the_list_of_runs_is_sorted_and_filtered(site: Site) -> None:
    for number, (run_id, strength) in enumerate([("first", 1.5), ("second", 0.5), ("third", None)]):
        fit = {"signal_strength": strength, "signal_strength_error": 0.25} if strength else None
        finished(site.output, run_id, 1.6e9 + number, document(fit=fit, complete=run_id != "second"))
    assert ids(site.text("/")) == ["third", "second", "first"]
    assert ids(site.text("/?sort=strength&order=asc")) == ["second", "first", "third"]
    assert ids(site.text("/?sort=strength&order=desc")) == ["first", "second", "third"]
    assert ids(site.text("/?q=INCOMPLETE+2020e")) == ["second"]
    html = site.text("/?sort=strength&order=asc")
    assert 'aria-sort="ascending"><a href="/?q=&amp;sort=strength&amp;order=desc' in html
    assert "1.50 ± 0.25" in html


def test_two_runs_are_compared_in_words_and_tables(site: Site) -> None:
    finished(site.output, "first", 1.7e9)
    other = document()
    other["samples"]["llll"]["events_selected"] = 11
    finished(site.output, "second", 1.7e9, other)
    text = without_tags(site.text("/compare?run=first&run=second"))
    assert "A and B differ in 1 number" in text
    assert "llll events_selected 12 – 11 – -1 -8.33 % –" in text
    assert "A and B: the same bits" in without_tags(site.text("/compare?run=first&run=first"))
    for path, status in (("/compare", 400), ("/compare?run=first", 400), ("/compare?run=first&run=../x", 404)):
        assert site.get(path).status_code == status


def test_a_restarted_service_requests_the_runs_under_way_once(site: Site) -> None:
    sent: list[Message] = []
    site.service.publish = sent.extend
    site.service.poll()
    site.service.poll()
    assert sent == [StatusRequest(None)]


def test_a_restarted_service_shows_the_progress_that_the_analysis_reports(site: Site) -> None:
    answer = [message for message in under_way(RUN, done=4) if getattr(message, "stage", "") in ("plan", "analysis")]
    site.handle(RunStarted(RUN, ANALYSES.resolve(RunSettings(release="demo"))), *answer, *under_way(RUN, done=5))
    site.handle(Progress("data-loader", Chunk(RUN, "Zee", 7000, 8000)))
    text = without_tags(site.text(f"/runs/{RUN}"))
    assert "TOY" in text
    assert "loaded 6,000 6 " in text
    assert "selected 5,000 5 " in text
    assert "analysed 5,000 5 " in text
    partial = document(0.0, complete=False)
    partial["samples"]["Zee"]["events_read"] = 6000
    site.handle(Result(RUN, False, partial))
    assert "6,000 of 10,000 events" in without_tags(site.text("/"))
    site.handle(Result(RUN, True, document()))
    assert f"{RUN} complete" in without_tags(site.text("/"))


def test_a_redelivered_result_is_not_drawn_again_but_a_complete_one_is(site: Site) -> None:
    incomplete = document(complete=False, problems=["a chunk is missing"])
    (folder,) = site.service.handle(Result(RUN, True, incomplete))
    assert isinstance(folder, ResultFiles)
    (again,) = site.service.handle(Result(RUN, True, incomplete))
    assert isinstance(again, ResultFiles)
    assert again.files == folder.files  # histograms.root has a new unique id whenever it is written
    (newer,) = site.service.handle(Result(RUN, True, document()))
    assert isinstance(newer, ResultFiles)
    assert newer.result["complete"]
    assert newer.files.keys() == folder.files.keys()
    assert newer.files["histograms.root"] != folder.files["histograms.root"]


def test_the_first_figure_is_published_while_the_others_are_drawn(site: Site) -> None:
    published: list[Message] = []
    site.service.publish = published.extend
    result = document()
    result["histograms"]["m4l_4e"] = result["histograms"]["m4l"]
    (last,) = site.service.handle(Result(RUN, True, result))
    (first,) = published
    assert isinstance(first, FirstFiles)
    assert isinstance(last, ResultFiles)
    assert last.files.keys() - first.files.keys() == {"m4l_4e.png", "m4l_4e.pdf"}
    assert first.files.items() <= last.files.items()


def being_fitted(result: dict[str, Any]) -> Result:
    """The partial result that the analysis publishes when all chunks are added up and the fit begins."""
    so_far = {**result, "fit": None, "fit_problem": "the fit is under way", "complete": False, "workspace": {}}
    return Result(RUN, False, so_far)


def first_files_of(site: Site, result: dict[str, Any]) -> FirstFiles:
    """Have the histograms of a run drawn that is being fitted, until the first one is published."""
    published: list[Message] = []
    site.service.publish = published.extend
    site.service.handle(being_fitted(result))

    def polled() -> bool:
        site.service.poll()
        return any(isinstance(message, FirstFiles) for message in published)

    wait_until(polled, "the first figure is published", 60)
    (first,) = [message for message in published if isinstance(message, FirstFiles)]
    published.clear()
    return first


def test_the_first_figure_is_published_while_the_run_is_fitted(site: Site) -> None:
    result = {**document(), "workspace": {}}
    result["histograms"]["m4l_4e"] = result["histograms"]["m4l"]
    published: list[Message] = []
    first = first_files_of(site, result)
    site.service.publish = published.extend
    assert first.files.keys() == {"result.json", "m4l.png", "m4l.pdf"}
    assert first.result["complete"]
    assert first.result["fit"] is None
    assert first.result["fit_problem"] == "the folder was written before the fit"
    (files,) = site.service.handle(Result(RUN, True, result))
    assert not published
    assert isinstance(files, ResultFiles)
    expected = all_files(result)
    assert files.files.keys() == expected.keys()
    assert all(files.files[name] == expected[name] for name in ("m4l.png", "m4l.pdf", "m4l_4e.png"))
    assert files.files["m4l.png"] == first.files["m4l.png"]


def test_no_histogram_is_drawn_twice_because_of_the_fit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    call = WorkerPool.call

    def noted(pool: WorkerPool, *arguments: Any) -> Any:
        drawn.append(arguments[4])
        return call(pool, *arguments)

    monkeypatch.setattr(WorkerPool, "call", noted)
    result = {**document(), "workspace": {}}
    for name in ("m4l_4e", "m4l_4mu", "m4l_2e2mu"):
        result["histograms"][name] = result["histograms"]["m4l"]
    site.service.handle(being_fitted(result))
    site.service.handle(Result(RUN, True, result))
    assert sorted(drawn) == sorted(result["histograms"])


def test_a_result_that_changed_during_the_fit_is_drawn_again(site: Site) -> None:
    result = {**document(), "workspace": {}}
    site.service.handle(being_fitted(result))
    lost = {**result, "complete": False, "problems": ["a chunk is missing"]}
    (files,) = site.service.handle(Result(RUN, True, lost))
    assert isinstance(files, ResultFiles)
    assert files.files["m4l.png"] == all_files(lost)["m4l.png"] != all_files(result)["m4l.png"]


def test_a_newer_incomplete_result_is_kept_whatever_the_clocks_say(site: Site) -> None:
    def incomplete(share: float, finished: str) -> Result:
        timing = {"seconds": 1.0, "finished": finished}
        return Result(RUN, True, {**document(share, complete=False, problems=["lost"]), "timing": timing})

    first, second = incomplete(0.5, "2026-01-31T12:00:00.000Z"), incomplete(0.75, "2026-01-31T11:00:00.000Z")
    for sent, kept in ((first, first), (second, second), (first, second)):
        (files,) = site.service.handle(sent)
        assert isinstance(files, ResultFiles)
        assert kept.result.items() <= files.result.items()


def test_figures_that_could_not_be_drawn_are_shown_and_drawn_when_the_result_is_sent_again(site: Site) -> None:
    complete = document(problems=[])
    stored = finished(site.output, RUN, 1.7e9, complete | {"problems": ["figure m4l cannot be drawn: <no memory>"]})
    text = site.text(f"/runs/{RUN}")
    assert "figure m4l cannot be drawn: &lt;no memory&gt;" in text
    assert "INCOMPLETE" not in text
    (files,) = site.service.handle(Result(RUN, True, complete))
    assert isinstance(files, ResultFiles)
    assert complete.items() <= files.result.items()
    assert (stored / "m4l.png").exists()
    (again,) = site.service.handle(Result(RUN, True, complete))
    assert isinstance(again, ResultFiles)
    assert again.files == files.files


def test_a_toy_run_is_marked_before_its_first_event(site: Site) -> None:
    site.handle(RunStarted(RUN, ANALYSES.resolve(RunSettings(release="demo", samples=("Zee", "llll")))))
    text = without_tags(site.text(f"/runs/{RUN}"))
    assert f"{RUN} TOY running" in text
    assert "These are not ATLAS data" in text
    assert "0 of 2 files" in text
    assert "Release demo" in without_tags(site.text(f"/runs/{RUN}/settings"))
    assert f"{RUN} TOY running" in without_tags(site.text("/"))
    assert f"<title>TOY – {RUN}</title>" in site.text(f"/runs/{RUN}")
    site.handle(Result(RUN, False, {"samples": 5}))
    assert f"{RUN} TOY" in without_tags(site.text("/"))
    site.handle(RunFailed(RUN, "why"))
    assert f"{RUN} TOY FAILED" in without_tags(site.text("/"))
    assert f"<title>TOY – FAILED – {RUN}</title>" in site.text(f"/runs/{RUN}")


def test_a_run_under_way_that_lost_a_part_is_marked_incomplete(site: Site) -> None:
    site.handle(*under_way(RUN), Result(RUN, False, document(complete=False, problems=["llll: <no> such file"])))
    html = site.text(f"/runs/{RUN}")
    assert "<strong>INCOMPLETE</strong>" in html
    assert "llll: &lt;no&gt; such file" in html
    assert f"{RUN} INCOMPLETE" in without_tags(site.text("/"))
    assert "<title>INCOMPLETE" in html


def test_late_messages_do_not_list_a_finished_run_as_under_way(site: Site) -> None:
    site.handle(Result(RUN, True, document()), *under_way(RUN))
    assert "No run is under way" in site.text("/")


def test_the_list_of_runs_under_way_is_bounded(site: Site) -> None:
    for number in range(MAX_RUNS + 5):
        site.handle(FetchProgress(f"run-{number}", "Zee", 1, None))
    html = site.text("/")
    assert html.count("<li>") == MAX_RUNS
    assert 'href="/runs/run-4"' not in html
    assert 'href="/runs/run-5"' in html


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every poll try to write a folder."""
    monkeypatch.setattr("workers.visualisation.service.RETRY_S", 0.0)


def test_an_output_folder_that_cannot_be_written_is_shown_on_the_page(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.handle(*under_way(RUN))
    site.output.write_text("a file in the place of the folder")
    site.handle(Result(RUN, True, document(fit={"signal_strength": 1.0})))
    for _ in range(3):
        site.service.poll()
    assert "cannot be written" in parts(site, RUN)  # while the final result, with a fit, has no folder
    assert caplog.text.count("cannot be written") == 1


def test_runs_are_drawn_once_while_the_disk_is_full_and_written_when_it_has_room(tmp_path: Path, at_once: None) -> None:
    pool = CountingPool(1)
    site = Site(tmp_path / "results", pool=pool)
    site.output.write_text("a file in the place of the folder")
    answers = {}
    for run_id in ("first", "second"):
        (answers[run_id],) = site.service.handle(Result(run_id, True, document(run_id=run_id)))
        site.service.poll()
    assert site.service.handle(Result("first", True, document(run_id="first"))) == [answers["first"]]
    assert pool.submitted == 2

    site.output.unlink()
    for _ in range(2):
        site.service.poll()

    assert pool.submitted == 2
    for run_id, answer in answers.items():
        assert isinstance(answer, ResultFiles)
        assert {file.name: file.read_bytes() for file in (site.output / run_id).iterdir()} == answer.files
        assert f"{run_id} complete" in without_tags(site.text("/"))
    assert {path.name for path in site.output.iterdir()} == set(answers)
    site.service.close()
    pool.close()


def test_a_restarted_service_requests_the_results_that_were_not_written(site: Site, at_once: None) -> None:
    site.output.mkdir()
    (site.output / RUN).write_text("a file in the place of the folder")
    site.handle(Result(RUN, True, document()))
    site.service.close()

    restarted = Visualisation(settings.read({"OUTPUT": str(site.output)}), pool=POOL)
    sent: list[Message] = []
    restarted.publish = sent.extend
    restarted.poll()
    assert sent == [StatusRequest(RUN)]

    (site.output / RUN).unlink()
    restarted.handle(Result(RUN, True, document()))
    assert [path.name for path in site.output.iterdir()] == [RUN]
    restarted.close()


def test_a_service_waits_when_too_many_runs_cannot_be_written(
    tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.visualisation.service.MAX_UNWRITTEN", 1)
    pool = CountingPool(1)
    site = Site(tmp_path / "results", pool=pool)
    site.output.write_text("a file in the place of the folder")
    site.handle(Result("first", True, document()))
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be written"):
            site.handle(Result("second", True, document()))
    assert pool.submitted == 1

    site.output.unlink()
    site.handle(Result("second", True, document()))
    assert {path.name for path in site.output.iterdir()} == {"first", "second"}
    site.service.close()
    pool.close()


def test_thousands_of_finished_runs_are_listed_in_pages(site: Site) -> None:
    body = json.dumps(document()).encode()
    for number in range(3000):
        finished(site.output, f"run-{number:04}", 1.7e9 + number, body)
    html = site.text("/")
    assert html.count('<th scope="row">') == 50
    assert "page 1 of 60" in html
    assert re.findall(r"run-\d{4}", html)[0] == "run-2999"
    assert "run-0000" in site.text("/?page=60")
    found = site.text("/?q=RUN-123")
    assert sorted(set(re.findall(r"run-\d{4}", found))) == [f"run-123{n}" for n in range(10)]


def test_the_list_shows_runs_written_by_another_program(site: Site) -> None:
    finished(site.output, "first", 1.7e9)
    assert "first" in site.text("/")
    finished(site.output, "second", 1.8e9)
    assert "second" in site.text("/")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"samples": 5}', b"\xff", b"[" * 100_000])
def test_a_result_that_cannot_be_read_is_listed_as_incomplete(site: Site, content: bytes) -> None:
    finished(site.output, "broken", 1.7e9, content)
    assert "broken INCOMPLETE" in without_tags(site.text("/"))
    assert "its result.json cannot be read" in site.text("/runs/broken")


def test_results_keep_deletes_the_oldest_results_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "results"
    for number in range(5):
        finished(output, f"run-{number}", 1.6e9 + number)
    (output / "no-result").mkdir()
    (output / "no-result" / "notes.txt").write_text("mine")
    finished(output, "bad name", 1.0e9)
    (output / "linked").symlink_to(finished(tmp_path, "elsewhere", 1.0e9))
    site = Site(output, RESULTS_KEEP="3")
    site.handle(Result("new", True, document()))
    left = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert left == {"new", "run-4", "run-3", "no-result", "bad name", "linked"}
    assert (tmp_path / "elsewhere" / "result.json").exists()
    assert "run-2" not in site.text("/")
    site.service.close()


def test_results_keep_deletes_no_new_run_after_the_clock_was_ahead(tmp_path: Path) -> None:
    finished(tmp_path, "ahead", 4e9)
    site = Site(tmp_path, RESULTS_KEEP="2")
    for run_id in ("first", "second", "third"):
        site.handle(Result(run_id, True, document(run_id=run_id)))
    assert {path.name for path in tmp_path.iterdir()} == {"second", "third"}
    assert re.findall(r'href="/runs/(\w+)"', site.text("/")) == ["third", "second"]
    site.service.close()


def test_results_keep_does_not_delete_runs_under_way(tmp_path: Path) -> None:
    for number in range(4):
        finished(tmp_path, f"run-{number}", 1.6e9 + number)
    archive = Archive(tmp_path)
    assert archive.prune(2, {"run-0"}) == ["run-2", "run-1"]
    assert [entry.run_id for entry in archive.entries()] == ["run-3", "run-0"]


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2f..%2fetc",
        "/runs/%2e%2e",
        "/runs/" + "a" * 300,
        "/runs/run%00",
        "/runs/run/files/..%2f..%2fsecret.txt",
        "/runs/run/files/%2e%2e",
        "/runs/run/files/%2fetc%2fpasswd",
        "/runs/run/files/link.txt",
        "/runs/run/files/folder",
        "/runs/run/files/.hidden",
        "/runs/run/files/absent.png",
        "/runs/linked",
        "/runs/linked/files/result.json",
        "/runs/.writing-1",
        "/static/..%2fapp.py",
        "/runs/none/events",
        "/runs/none/all.zip",
        "/runs/linked/all.zip",
        "/runs/run/nothing",
        "/runs/none/partial.png",
        "/comparisons/none",
        "/comparisons/run",
        "/comparisons/run/result.json",
        "/comparisons/%2e%2e/run",
    ],
)
def test_no_address_leads_outside_the_result_folders(site: Site, path: str) -> None:
    (site.output.parent / "secret.txt").write_text("SECRET")
    run = finished(site.output, "run", 1.7e9)
    (run / "link.txt").symlink_to(site.output.parent / "secret.txt")
    (run / "result-files").mkdir()
    (run / ".hidden").write_text("SECRET")
    (site.output / "linked").symlink_to(finished(site.output.parent, "elsewhere", 1.7e9))
    answer = site.get(path)
    assert answer.status_code == 404
    assert "SECRET" not in answer.text
    html = site.text("/runs/run")
    assert "link.txt" not in html
    assert ".hidden" not in html


def test_every_answer_has_the_security_headers(site: Site) -> None:
    finished(site.output, "run", 1.7e9)
    for path in ("/", "/runs/run", "/runs/run/files/result.json", "/static/page.js", "/nowhere", "/runs/x y"):
        headers = site.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self'" in policy or "script-src" not in policy
        assert ("unsafe" in policy) == ("/files/" in path)  # browsers display a file in a page with inline styles
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_the_page_is_read_only(site: Site) -> None:
    finished(site.output, "run", 1.7e9)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert requests.request(method, site.url + "/runs/run", timeout=30).status_code == 405
    assert (site.output / "run" / "result.json").exists()


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(site: Site) -> None:
    site.handle(*under_way("live"), RunFailed("lost", "why"))
    (finished(site.output, RUN, 1.7e9, document(fit={"a": 1})) / "m4l.png").write_bytes(b"\x89PNG")
    site.handle(*status_messages())
    tabs = ("", "/pipeline", "/timeline", "/fit", "/tables", "/files", "/settings")
    of_runs = [f"/runs/{run_id}{tab}" for run_id in ("live", RUN) for tab in tabs]
    for path in ("/", "/pipeline", *of_runs, "/runs/lost", f"/compare?run={RUN}&run={RUN}", "/nowhere"):
        html = site.get(path).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script>", html)
        assert not re.findall(r'(?:src|href)="(?!/|#)[^"]*"', html)
        for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
            assert 'scope="' in table


def test_names_and_problems_of_runs_are_escaped(site: Site) -> None:
    site.handle(RunFailed("lost", "<script>alert(1)</script>"))
    evil = document(problems=["<i>"], complete=False, fit={"<u>": {"<u>": {"<u>": "<u>"}}})
    evil["release"] = "<b>"
    evil["settings"]["<u>"] = "<u>"
    evil["categories"]["<u>"] = {"yield": 1.5}
    finished(site.output, "evil", 1.7e9, evil)
    for path in ("/", "/runs/lost", "/runs/evil", "/?q=<u>"):
        assert not re.search(r"<(script>|b>|i>|u>)", site.text(path))


def test_an_unchanged_file_is_not_sent_again(site: Site) -> None:
    finished(site.output, "run", 1.7e9)
    tag = site.get("/runs/run/files/result.json").headers["etag"]
    assert site.get("/runs/run/files/result.json", headers={"If-None-Match": tag}).status_code == 304


def test_files_that_a_browser_must_not_open_are_downloaded(site: Site) -> None:
    folder = finished(site.output, "run", 1.7e9)
    for name in ("page.html", "plot.svg"):
        (folder / name).write_text("<script>alert(1)</script>")
        headers = site.get(f"/runs/run/files/{name}").headers
        assert headers["content-disposition"] == f'attachment; filename="{name}"'
        assert headers["content-type"] == "application/octet-stream"


def test_a_service_that_stops_ends_the_streams_of_its_viewers(site: Site) -> None:
    site.handle(*under_way(RUN))
    with site.get(f"/runs/{RUN}/events", stream=True) as stream:
        next(events_of(stream))
        site.service.close()
    with pytest.raises(requests.ConnectionError):
        site.get("/")


@pytest.mark.parametrize("variable", ["PAGE_PORT=70000", "PAGE_PORT=web", "RESULTS_KEEP=-1", "RESULTS_KEEP=some"])
def test_a_setting_that_cannot_be_used_is_named_with_its_value(variable: str) -> None:
    name, _, value = variable.partition("=")
    with pytest.raises(SettingsError, match=rf"{name}='?{value}"):
        settings.read({name: value})
