"""A remote file is downloaded completely and once into the cache, or the error says why not."""

from __future__ import annotations

import errno
import gzip
import os
import re
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from common.errors import FetchError
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
    dropped,
    fetch,
    fetch_first,
    fetching_process,
    left_in,
    ranged,
    serving,
    short,
    status,
)
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher, cache_path
from workers.data_loader.remote.policy import DEFAULT_POLICY, RetryPolicy
from workers.data_loader.remote.transfer import CacheError

pytestmark = pytest.mark.usefixtures("no_proxy")


def refused_url(name: str = "data_A.root") -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/{name}"


@dataclass
class SilentPort:
    """A listening port whose queue is full, so that the kernel drops each further packet."""

    sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> str:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self.sockets.append(listener)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            self.sockets.append(filler)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/data_A.root"

    def __exit__(self, *exc: object) -> None:
        for it in self.sockets:
            it.close()


# --- complete files and the cache ---


def test_a_complete_file_is_cached_and_nothing_else(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete()]
    seen: list[tuple[int, int | None]] = []
    path = fetch(server.url(), tmp_path, control=FetchControl(lambda *done: seen.append(done)))
    assert path.read_bytes() == BODY
    assert left_in(tmp_path) == {"data_A.root"}
    assert seen[-1] == (SIZE, SIZE)
    assert seen == sorted(seen)
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_a_cached_file_needs_no_server(tmp_path: Path) -> None:
    url = "https://opendata.invalid/4lep/data_A.root"
    path = cache_path(url, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert fetch(url, tmp_path) == path
    assert fetch_first([refused_url(), url], tmp_path) == path


def test_without_a_content_length_the_length_in_the_root_header_counts(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [
        lambda request: request.reply(200, BODY[:HALF], -1),
        lambda request: request.reply(200, BODY, -1),
    ]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_compressed_response_is_decompressed(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete(gzip.compress(BODY, 1), Content_Encoding="gzip", ETag='"v1"')]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY


def test_the_path_in_the_cache_is_host_and_path_of_the_url(tmp_path: Path) -> None:
    url = "https://opendata.cern.ch/eos/2020-01-22/4lep/MC/mc_345060.ggH125_ZZ4lep.4lep.root"
    assert cache_path(url, tmp_path) == tmp_path / url.removeprefix("https://")


def test_urls_never_share_a_path_nor_leave_the_cache(tmp_path: Path) -> None:
    host = "https://a.ch"
    urls = [
        f"{host}/b/c.root", f"{host}/b//c.root", f"{host}/b%2Fc.root", f"{host}/b_c.root", f"{host}/b c.root",
        f"{host}/../b/c.root", f"{host}/../../../etc/passwd", f"{host}/./b/c.root", f"{host}/b/c.root?x=1",
        f"{host}/b/c.root?x=2", f"{host}:8443/b/c.root", "http://a.ch/b/c.root", "root://a.ch//b/c.root",
        f"{host}/b/c.root.part", f"{host}/b/c.root/d.root", f"{host}/b/c.root.lock", f"{host}/", host,
        f"{host}/{'n' * 300}1.root", f"{host}/{'n' * 300}2.root", "https://A.ch/b/c.root", "https://[::1]/c.root",
    ]  # fmt: skip
    paths = [cache_path(url, tmp_path) for url in urls]
    assert len(set(paths)) == len(urls)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) and ".." not in path.parts for path in paths)
    assert not any(path in other.parents for path in paths for other in paths)


@pytest.mark.parametrize("url", ["ftp://a.ch/x.root", "data_A.root", "https://", "https://[a/x.root", "http://a:b/x"])
def test_a_url_of_another_scheme_or_without_host_is_an_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not an address"):
        fetch(url, tmp_path)


# --- temporary failures ---


@pytest.mark.parametrize("failure", [short(), dropped(), status(503), status(429), status(500)])
def test_a_temporary_failure_is_retried(failure: Step, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [failure, failure, complete()]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert len(server.requests) == 3
    assert left_in(tmp_path) == {"data_A.root"}


def test_a_server_that_sends_nothing_is_retried(server: ScriptedServer, tmp_path: Path) -> None:
    def silent(request: Request) -> None:
        request.server.release.wait(10)

    server.script = [silent, complete()]
    policy = RetryPolicy(first_delay_s=0.001, read_timeout_s=0.1)
    assert fetch(server.url(), tmp_path, policy=policy).read_bytes() == BODY


@pytest.mark.parametrize("failure", [short(), dropped(), status(503)])
def test_a_lasting_failure_is_an_error_after_five_attempts(
    failure: Step, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [failure]
    with pytest.raises(FetchError, match="the last of 5 attempts") as caught:
        fetch(server.url(), tmp_path, policy=QUICK)
    assert not caught.value.unreachable
    assert len(server.requests) == 5
    assert left_in(tmp_path) == set()


def test_delays_double_up_to_a_maximum() -> None:
    delays = [DEFAULT_POLICY.delay_s(failures) for failures in range(1, 9)]
    assert all(0.5 * 2**n <= delay <= 2**n for n, delay in enumerate(delays[:4]))
    assert max(delays) <= DEFAULT_POLICY.max_delay_s
    assert sum(DEFAULT_POLICY.delay_s(failures) for failures in range(1, DEFAULT_POLICY.attempts)) <= 15


# --- resuming ---


def test_an_incomplete_body_is_resumed_where_it_ended(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(ETag='"v1"'), ranged()]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={HALF}-"
    assert server.requests[1]["If-Range"] == '"v1"'


def test_the_date_is_the_version_if_the_etag_is_weak(server: ScriptedServer, tmp_path: Path) -> None:
    date = "Wed, 22 Jan 2020 10:00:00 GMT"
    server.script = [short(ETag='W/"v1"', Last_Modified=date), ranged(etag=date)]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert server.requests[1]["If-Range"] == date


def test_a_server_that_ignores_ranges_sends_the_complete_file_again(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(ETag='"v1"'), complete(ETag='"v1"')]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert "Range" in server.requests[1]


def test_a_file_of_unknown_version_is_not_resumed(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(), ranged(CHANGED_BODY)]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == CHANGED_BODY
    assert "Range" not in server.requests[1]


def test_a_file_that_changed_between_attempts_is_downloaded_from_the_start(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [short(ETag='"v1"'), ranged(CHANGED_BODY, etag='"v2"')]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == CHANGED_BODY


@pytest.mark.parametrize(
    ("content_range", "etag"),
    [
        (f"bytes {HALF}-{SIZE - 1}/{SIZE}", '"v2"'),
        (f"bytes 0-{SIZE - HALF - 1}/{SIZE}", '"v1"'),
        ("", '"v1"'),
    ],
)
def test_a_range_that_does_not_continue_the_file_is_discarded(
    content_range: str, etag: str, server: ScriptedServer, tmp_path: Path
) -> None:
    def misfit(request: Request) -> None:
        request.reply(206, CHANGED_BODY[HALF:], Content_Range=content_range, ETag=etag)

    server.script = [short(ETag='"v1"'), misfit, ranged(CHANGED_BODY, etag='"v2"')]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == CHANGED_BODY
    assert "Range" not in server.requests[2]


def test_a_range_beyond_the_end_starts_the_download_over(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(ETag='"v1"'), status(416), ranged()]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY


def test_the_next_call_resumes_a_download_that_failed(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(ETag='"v1"'), status(503)]
    with pytest.raises(FetchError, match="HTTP 503"):
        fetch(server.url(), tmp_path, policy=QUICK)
    server.script = [ranged()]
    assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert server.requests[-1]["Range"] == f"bytes={HALF}-"
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}


# --- permanent failures ---


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_client_error_is_not_retried(code: int, server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [status(code)]
    with pytest.raises(FetchError, match=f"HTTP {code} ") as caught:
        fetch(server.url(), tmp_path)
    assert not caught.value.unreachable
    assert len(server.requests) == 1
    assert left_in(tmp_path) == set()


def test_a_client_error_after_half_a_file_leaves_no_file(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [short(ETag='"v1"'), status(404)]
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch(server.url(), tmp_path, policy=QUICK)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("page", "expected"),
    [(b"<!DOCTYPE html><p>Sorry", "an HTML page, not a ROOT file"), (b"", "not a ROOT file")],
)
def test_an_html_page_instead_of_the_file_is_an_error(
    page: bytes, expected: str, server: ScriptedServer, tmp_path: Path
) -> None:
    server.script = [complete(page)]
    with pytest.raises(FetchError, match=expected):
        fetch(server.url(), tmp_path)
    assert left_in(tmp_path) == set()
    server.script = [complete()]
    assert fetch(server.url(), tmp_path).read_bytes() == BODY


def test_credentials_never_appear_in_errors(server: ScriptedServer, tmp_path: Path) -> None:
    secretive = server.url("/x.root?token=s3cret").replace("://", "://me:s3cret@")
    server.script = [status(503)]
    urls = [secretive, refused_url("x.root?token=s3cret").replace("://", "://me:s3cret@"), "ftp://me:s3cret@a/x"]
    for url in urls:
        with pytest.raises(FetchError) as caught:
            fetch(url, tmp_path, policy=QUICK)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        assert "s3cret" not in caught.value.url
    assert not any("s3cret" in str(path) for path in tmp_path.rglob("*"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_and_no_other_url_is_tried(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [complete()]
    target = cache_path(server.url(), tmp_path)
    target.parent.mkdir(parents=True)
    target.with_name("data_A.root.part").symlink_to("/dev/full")
    with pytest.raises(CacheError, match=re.escape(str(target.parent))) as caught:
        fetch_first([server.url(), server.url("/other.root")], tmp_path)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert len(server.requests) == 1
    assert left_in(tmp_path) == set()
    assert fetch(server.url(), tmp_path).read_bytes() == BODY


# --- no network ---


def test_a_refused_connection_is_an_error_within_a_second(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FetchError, match="refused") as caught:
        fetch(refused_url(), tmp_path)
    assert caught.value.unreachable
    assert time.monotonic() - began < 1
    assert left_in(tmp_path) == set()


def test_a_name_that_does_not_resolve_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(FetchError, match=r"no connection to unknown\.ch port 443 .*not known") as caught:
        fetch("https://unknown.ch/x.root", tmp_path)
    assert caught.value.unreachable


def test_a_name_look_up_that_hangs_ends_within_the_connect_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: ended.wait(10) and [])
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"within 0\.6 s") as caught:
        fetch("https://hanging.ch/x.root", tmp_path, policy=QUICK)
    ended.set()
    assert caught.value.unreachable
    assert time.monotonic() - began < QUICK.connect_timeout_s + 0.3


def test_hosts_that_drop_packets_take_the_connect_timeout_each(tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, QUICK)
    with SilentPort() as first, SilentPort() as second, SilentPort() as third:
        began = time.monotonic()
        with pytest.raises(FetchError, match=r"within 0\.6 s") as caught:
            fetcher.fetch_first([Address(url) for url in (first, second, third)])
        assert caught.value.unreachable
        assert time.monotonic() - began < 3 * QUICK.connect_timeout_s + 0.5
        assert 3 * DEFAULT_POLICY.connect_timeout_s < 12

        began = time.monotonic()
        with pytest.raises(FetchError, match="within"):
            fetcher.fetch(Address(first.replace("data_A", "data_B")))
        assert time.monotonic() - began < 0.2, "the check of an unreachable host is not repeated at once"


def test_an_unreachable_server_is_not_tried_again_at_once_but_later(tmp_path: Path) -> None:
    url = refused_url()
    fetchers = [Fetcher(tmp_path, replace(QUICK, retry_unreachable_after_s=seconds)) for seconds in (30.0, 0.0)]
    for fetcher in fetchers:
        with pytest.raises(FetchError, match="refused"):
            fetcher.fetch(Address(url))
    with serving(port=int(url.split(":")[2].split("/")[0])) as server:
        server.script = [complete()]
        with pytest.raises(FetchError, match="refused"):
            fetchers[0].fetch(Address(url))
        assert fetchers[1].fetch(Address(url)).read_bytes() == BODY


def test_the_next_url_is_used_if_the_first_fails(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [status(404), complete()]
    path = fetch_first([refused_url(), server.url("/gone.root"), server.url()], tmp_path)
    assert path.read_bytes() == BODY


def test_the_error_names_every_url_with_its_reason_and_what_to_do(server: ScriptedServer, tmp_path: Path) -> None:
    server.script = [status(404), complete(b"<html>")]
    urls = [refused_url(), server.url("/gone.root"), server.url("/page.root")]
    with pytest.raises(FetchError) as caught:
        fetch_first(urls, tmp_path)
    message = str(caught.value)
    assert not caught.value.unreachable
    assert [message.index(url) for url in urls] == sorted(message.index(url) for url in urls)
    assert re.search("refused.*HTTP 404 Not Found.*an HTML page", message)
    assert re.search("--data DIR.*--release demo$", message)


def test_no_url_at_all_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no address is known.*--release demo$"):
        fetch_first([], tmp_path)


def test_xrootd_without_its_package_names_what_to_install(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "XRootD.client", None)
    with pytest.raises(FetchError, match="pip install xrootd"):
        fetch(server.url().replace("http:", "root:"), tmp_path)


# --- several processes ---


def test_two_processes_and_two_threads_download_a_file_once(server: ScriptedServer, tmp_path: Path) -> None:
    begun = threading.Event()

    def held_back(request: Request) -> None:
        begun.set()
        request.server.release.wait(10)
        request.reply(200, BODY)

    server.script = [held_back]
    url = server.url()
    with fetching_process(url, tmp_path) as one, fetching_process(url, tmp_path) as two:
        assert begun.wait(10)
        with ThreadPoolExecutor(2) as pool:
            paths = [pool.submit(fetch, url, tmp_path) for _ in range(2)]
            server.release.set()
            assert {path.result(timeout=10).read_bytes() for path in paths} == {BODY}
        outputs = [process.communicate(timeout=10)[0] for process in (one, two)]
    assert all(output.endswith("there\n") for output in outputs)
    assert len(server.requests) == 1


def test_the_download_of_a_killed_process_is_resumed(server: ScriptedServer, tmp_path: Path) -> None:
    def half_then_nothing(request: Request) -> None:
        request.reply(200, BODY[:HALF], SIZE, ETag='"v1"')
        request.server.release.wait(10)

    server.script = [half_then_nothing, ranged()]
    with fetching_process(server.url(), tmp_path) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < HALF:
            pass
        process.kill()
        process.wait(10)
        assert fetch(server.url(), tmp_path, policy=QUICK).read_bytes() == BODY
    assert server.requests[1]["Range"] == f"bytes={HALF}-"
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}
