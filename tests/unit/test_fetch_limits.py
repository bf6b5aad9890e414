"""A download keeps to the limits of the server, has limits of its own, and accepts no other file than its own."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.errors import FetchError, Unavailable
from tests.support.file_server import (
    BODY,
    CHANGED_BODY,
    HALF,
    QUICK,
    SIZE,
    Request,
    ScriptedServer,
    Step,
    complete,
    fetch,
    fetch_first,
    fetching_process,
    left_in,
    ranged,
    short,
)
from tests.support.paths import ROOT
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher
from workers.data_loader.root_file import record_fault

pytestmark = pytest.mark.usefixtures("no_proxy")


# --- limits of the server ---


def portal(statuses: list[int], files: int) -> Step:
    """Answer 429 to ranges and while another request is answered; note the status of each answer.

    A request is held until another one arrives, or for a while if none does; the last of ``files`` is not held.
    """
    answering = threading.Lock()
    another = threading.Event()

    def step(request: Request) -> None:
        if "Range" in request.headers or not answering.acquire(blocking=False):
            statuses.append(429)
            another.set()
            request.reply(429, b"too many requests", Retry_After="0")
            return
        statuses.append(200)
        if statuses.count(200) < files:
            another.wait(0.5)
        answering.release()  # before the answer, after which the next request may come at once
        request.reply(200, BODY, ETag='"v1"')

    return step


def test_processes_and_threads_send_a_host_one_request_at_a_time(server: ScriptedServer, tmp_path: Path) -> None:
    statuses: list[int] = []
    server.script = [portal(statuses, 4)]
    urls = [server.url(f"/4lep/{name}.root") for name in "abcd"]
    with fetching_process(urls[0], tmp_path) as one, fetching_process(urls[1], tmp_path) as two:
        with ThreadPoolExecutor(2) as pool:
            paths = [pool.submit(fetch, url, tmp_path, policy=QUICK) for url in urls[2:]]
            assert {path.result(timeout=20).read_bytes() for path in paths} == {BODY}
        outputs = [process.communicate(timeout=20)[0] for process in (one, two)]
    assert all(output.endswith("there\n") for output in outputs)
    assert statuses == [200] * 4


def test_the_whole_file_is_requested_where_a_range_is_answered_by_429(server: ScriptedServer, tmp_path: Path) -> None:
    statuses: list[int] = []
    server.script = [short(ETag='"v1"'), portal(statuses, 1)]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert statuses == [429, 200]
    assert ["Range" in headers for headers in server.requests] == [False, True, False]


def in_two_seconds() -> str:
    """Return the date two seconds ahead, rounded down to a second."""
    return email.utils.formatdate(time.time() + 2, usegmt=True)


@pytest.mark.parametrize(("retry_after", "least_s"), [(lambda: "1", 1.0), (in_two_seconds, 0.9)])
def test_a_retry_after_in_seconds_or_as_a_date_is_waited_for(
    retry_after: Callable[[], str], least_s: float, server: ScriptedServer, tmp_path: Path
) -> None:
    times: list[float] = []

    def limited(request: Request) -> None:
        times.append(time.monotonic())
        request.reply(429, b"", Retry_After=retry_after())

    def later(request: Request) -> None:
        times.append(time.monotonic())
        request.reply(200, BODY)

    server.script = [limited, later]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert times[1] - times[0] >= least_s


@pytest.mark.parametrize("retry_after", ["9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT", "never", "-5", "nan", "²"])
def test_a_retry_after_is_kept_up_to_a_limit(retry_after: str, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [lambda request: request.reply(503, b"", Retry_After=retry_after), complete()]
    policy = replace(QUICK, max_retry_after_s=0.05)
    assert fetch(server.url(), tmp_path, policy=policy).read_bytes() == BODY


# --- limits of a download ---


def dripping(*, headers_too: bool = False) -> Step:
    """Send a byte every 20 ms until the test ends."""

    def step(request: Request) -> None:
        if not headers_too:
            request.reply(200, b"", SIZE, ETag='"v1"')
        with contextlib.suppress(OSError):
            for byte in range(500):
                request.wfile.write(BODY[byte : byte + 1])
                if request.server.release.wait(0.02):
                    return

    return step


def test_a_server_that_sends_too_slowly_is_given_up(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [dripping()]
    policy = replace(QUICK, attempts=2, least_rate_over_s=0.3)
    with pytest.raises(FetchError, match=r"sent [0-9]+ bytes in 0\.3 s, less than 10000 bytes a second"):
        fetch(server.url(), tmp_path, policy=policy)
    assert len(server.requests) == 2


def test_headers_that_arrive_too_slowly_are_given_up(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [dripping(headers_too=True)]
    policy = replace(QUICK, attempts=1, connect_timeout_s=0.3, read_timeout_s=0.2)
    with pytest.raises(FetchError, match=r"no response within 0\.5 s"):
        fetch(server.url(), tmp_path, policy=policy)


def test_all_attempts_together_have_a_time_limit(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [dripping()]
    policy = replace(QUICK, least_rate_bytes_per_s=1, total_s=0.5)
    with pytest.raises(FetchError, match=r"not complete after 0\.5 s"):
        fetch(server.url(), tmp_path, policy=policy)


def half_then_silent(request: Request) -> None:
    request.reply(200, BODY[:HALF], SIZE, ETag='"v1"')
    request.server.release.wait(10)


def test_a_fetch_is_stopped_within_a_second_and_resumed_later(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [half_then_silent, ranged()]
    stop, half = threading.Event(), threading.Event()
    control = FetchControl(lambda done, _: half.set() if done >= HALF else None, stop=stop)
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetch, server.url(), tmp_path, control=control)
        assert half.wait(10)
        stop.set()
        with pytest.raises(Unavailable, match="stopped"):
            fetching.result(timeout=1)
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={HALF}-"


def test_waiting_for_another_download_gives_heartbeats_and_can_be_stopped(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [half_then_silent]
    received, waiting, stop_first, stop_second = (threading.Event() for _ in range(4))
    first = FetchControl(lambda *_: received.set(), stop=stop_first)
    second = FetchControl(heartbeat=waiting.set, stop=stop_second)
    with ThreadPoolExecutor(2) as pool:
        downloading = pool.submit(fetch, server.url("/a.root"), tmp_path, control=first)
        assert received.wait(10)
        queued = pool.submit(fetch, server.url("/b.root"), tmp_path, control=second)
        assert waiting.wait(10)
        for stop, future in ((stop_second, queued), (stop_first, downloading)):
            stop.set()
            with pytest.raises(Unavailable):
                future.result(timeout=1)
    assert len(server.requests) == 1


def test_an_error_of_the_caller_is_passed_on_and_keeps_the_partial_file(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete(ETag='"v1"'), ranged()]

    def broken_pipe(done: int, total: int | None) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        fetch(server.url(), tmp_path, control=FetchControl(broken_pipe))
    assert left_in(tmp_path) == {"data_A.root.part", "data_A.root.part.version"}
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert "Range" in server.requests[1]


# --- wrong files ---


def of_the_record(url: str) -> Address:
    return Address(url, partial(record_fault, size=SIZE, adler32=f"{zlib.adler32(BODY):08x}"), SIZE)


@pytest.mark.parametrize("wrong", [CHANGED_BODY, BODY[:-1000], b"<html>maintenance</html>", BODY + b"x"])
def test_a_wrong_file_is_fetched_again(wrong: bytes, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete(wrong, ETag='"v1"'), complete(ETag='"v2"')]
    assert Fetcher(tmp_path, QUICK).fetch(of_the_record(server.url())).read_bytes() == BODY
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}


def test_after_two_wrong_files_the_next_address_is_used(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete(CHANGED_BODY), complete(CHANGED_BODY), complete()]
    addresses = [of_the_record(server.url(path)) for path in ("/a", "/b")]
    path, address = Fetcher(tmp_path, QUICK).fetch_first(addresses)
    assert (path.read_bytes(), address) == (BODY, addresses[1])
    assert len(server.requests) == 3
    assert left_in(tmp_path) == {"b"}


def test_a_file_that_is_larger_than_wanted_is_not_received(server: ScriptedServer, tmp_path: Path) -> None:
    for step in (complete(), lambda request: request.reply(200, BODY, -1)):
        server.script = [step]
        with pytest.raises(FetchError, match=rf"has (more than 1000|{SIZE}) bytes"):
            Fetcher(tmp_path, QUICK).fetch(Address(server.url(), bytes=1000))
        assert left_in(tmp_path) == set()


def test_no_byte_of_an_answer_is_in_an_error(server: ScriptedServer, tmp_path: Path) -> None:
    def unauthorised(request: Request) -> None:
        request.send_response(401, "f0reign")
        request.end_headers()

    server.script = [unauthorised, complete(b"f0reign page")]
    with pytest.raises(FetchError) as caught:
        fetch_first([server.url("/a.root"), server.url("/b.root")], tmp_path)
    assert "HTTP 401 Unauthorized" in str(caught.value)
    assert "f0reign" not in str(caught.value)


def redirect(location: str) -> Step:
    return lambda request: request.reply(302, b"", Location=location)


def raw(answer: bytes) -> Step:
    def step(request: Request) -> None:
        request.wfile.write(answer)
        request.close_connection = True

    return step


@pytest.mark.parametrize(
    "answer",
    [
        redirect("http://127.0.0.1:f0reign/"),
        redirect("http://[f0reign"),
        redirect(f"http://f0reign{'a' * 64}.x/"),
        redirect("http://.f0reign/"),
        redirect("file:///f0reign"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf0reign\r\n"),
    ],
)
def test_after_an_answer_that_is_not_valid_the_next_address_is_used(
    answer: Step, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [answer]
    once = replace(QUICK, attempts=1)
    urls = [server.url(f"/{name}.root").replace("://", "://me:s3cret@") for name in "ab"]
    with pytest.raises(FetchError) as caught:
        fetch(urls[0], tmp_path, policy=once)
    assert "f0reign" not in str(caught.value)

    server.requests.clear()
    server.script = [answer, complete()]
    assert fetch_first(urls, tmp_path, once).read_bytes() == BODY


@pytest.mark.parametrize("content", [None, "", "not a certificate"])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificate_authorities_that_cannot_be_used_are_named_by_their_variable(
    variable: str, content: str | None, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(bundle))
    with pytest.raises(FetchError, match=r"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names cannot be used; correct"):
        fetch(server.url().replace("http:", "https:"), tmp_path / "cache", policy=QUICK)


@pytest.mark.parametrize(
    "proxy", ["http://user:secret@127.0.0.1:1", "http://127.0.0.1:99999", "socks5://127.0.0.1:1", "//x"]
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(
    proxy: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(
        FetchError, match=r"no connection through the proxy that HTTP_PROXY or ALL_PROXY names"
    ) as error:
        fetch(server.url(), tmp_path, policy=QUICK)
    assert "secret" not in str(error.value)


FETCH_WITH_LOG = """
import sys
from pathlib import Path
from common.logs import configure_logging
from workers.data_loader.remote.fetch import Address, Fetcher
configure_logging("DEBUG")
print(Fetcher(Path(sys.argv[2])).fetch(Address(sys.argv[1])))
"""


def test_no_log_shows_the_query_of_an_address_or_text_of_its_server(server: ScriptedServer, tmp_path: Path) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nf0reign header without a colon\r\n\r\n"
    server.script = [raw(head.encode() + BODY)]
    done = subprocess.run(
        [sys.executable, "-c", FETCH_WITH_LOG, server.url("/a.root?token=s3cret"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip().endswith("a.root")
    assert " DEBUG " in done.stderr
    assert "s3cret" not in done.stderr
    assert "f0reign" not in done.stderr
