"""The listeners of a service: who may connect, and what silent connections cost."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from common.health import ServiceMetrics, listen
from common.listeners import connection_limit
from physics import ANALYSES
from tests.support.drawing import POOL
from tests.support.waiting import wait_until
from tests.unit.test_page import RUN, Site, events_of, quiet_port, under_way
from workers.visualisation.archive import Archive
from workers.visualisation.page import PageServer
from workers.visualisation.page.live import LiveRuns

Listener = Callable[..., int]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Listener]:
    """Starts a page that waits one second for a request; returns its port."""
    with contextlib.ExitStack() as stack:

        def start(host: str = "127.0.0.1") -> int:
            port = quiet_port()
            live = LiveRuns(lambda run_id: False)
            server = PageServer(host, port, live, Archive(tmp_path), POOL, analyses=ANALYSES, request_timeout_s=1)
            stack.callback(server.close)
            return port

        yield start


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Starts the listener of the health checks; returns its port."""
    monkeypatch.setattr("common.health._Silent.timeout", 1)
    with contextlib.ExitStack() as stack:

        def start(host: str = "127.0.0.1") -> int:
            port = quiet_port()
            stack.enter_context(listen(ServiceMetrics("echo"), port, host))
            return port

        yield start


@pytest.fixture(params=["page", "metrics"])
def listener(request: pytest.FixtureRequest) -> Listener:
    """Starts either listener."""
    start: Listener = request.getfixturevalue(request.param)
    return start


def answers(port: int, host: str = "127.0.0.1", **headers: str) -> int:
    """Return the status that ``/`` is answered with, which is 404 for the health checks."""
    return requests.get(f"http://{host}:{port}/", headers=headers, timeout=10).status_code


@contextlib.contextmanager
def silent_connections(port: int, number: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(number)]


def closes(connection: socket.socket, timeout_s: float = 10.0) -> bool:
    """Wait until the other side closes a connection."""
    connection.settimeout(timeout_s)
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_a_listener_is_open_to_its_own_machine_unless_another_address_is_set(listener: Listener) -> None:
    port = listener()
    assert answers(port) in {200, 404}
    with pytest.raises(requests.ConnectionError):
        answers(port, "127.0.0.2")  # an address that is not the listener's


def test_a_listener_on_all_addresses_answers_any_host_name(listener: Listener) -> None:
    port = listener("::")
    assert answers(port, Host=f"visualisation.atlas.svc:{port}") in {200, 404}
    assert answers(port, Host="10.42.0.7:8080") in {200, 404}  # as a probe of Kubernetes does


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_listener_answers_over_ipv6(listener: Listener, host: str) -> None:
    assert answers(listener(host), "[::1]") in {200, 404}


def test_without_ipv6_a_listener_on_all_addresses_has_those_of_ipv4(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert answers(listener("::")) in {200, 404}


def test_a_local_page_refuses_the_name_of_another_host(page: Listener) -> None:
    port = page()
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert answers(port, Host=host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert answers(port, Host=host) == 400, host


def test_an_address_that_is_not_this_machine_s_is_named_in_the_error(listener: Listener) -> None:
    with pytest.raises(OSError, match=r"_HOST=192\.0\.2\.1, \w+_PORT=\d+: "):
        listener("192.0.2.1")


def test_silent_connections_keep_nobody_out(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.visualisation.page.connections.MAX_CONNECTIONS", 8)
    monkeypatch.setattr("common.health.MAX_CONNECTIONS", 8)
    port = listener()
    with silent_connections(port, 40) as silent:
        assert answers(port) in {200, 404}
        assert closes(silent[0])


def test_a_connection_without_a_request_is_closed(listener: Listener) -> None:
    with silent_connections(listener(), 1) as (connection,):
        assert closes(connection)


def test_a_request_that_arrives_byte_by_byte_is_not_waited_for(page: Listener) -> None:
    port = page()
    answers(port)
    for head in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n"):
        with silent_connections(port, 1) as (connection,):
            connection.sendall(head)
            deadline = time.monotonic() + 10
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < deadline:
                    if select.select([connection], [], [], 0.1)[0] and not connection.recv(100_000):
                        break
                    connection.send(b"x")
            assert time.monotonic() < deadline


def test_a_viewer_is_not_disconnected_by_silent_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.visualisation.page.connections.MAX_CONNECTIONS", 8)
    site = Site(tmp_path)
    site.handle(*under_way(RUN))
    with site.get(f"/runs/{RUN}/events", stream=True) as stream:
        events = events_of(stream)
        next(events)
        with silent_connections(int(site.url.rpartition(":")[2]), 20) as silent:
            assert closes(silent[0])
            site.handle(*under_way(RUN, done=7))
            assert any("7,000" in event for event in events)
        site.service.close()


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_table_of_files_is_logged_once_and_the_listener_recovers(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    port = listener()
    answers(port)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.socket()) for _ in range(10)]
        with no_more_files():
            for connection in waiting:  # more than one: files of earlier connections may be closed meanwhile
                connection.settimeout(20)
                connection.connect(("127.0.0.1", port))
            wait_until(lambda: caplog.records, "it was logged", 10)
        for connection in waiting:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.")
    (record,) = caplog.records
    assert "no connection for now: [Errno 24] Too many open files" in record.getMessage()


def test_a_listener_uses_at_most_half_of_the_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, limit in ((256, 128), (100_000, 1000), (resource.RLIM_INFINITY, 1000), (1, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, soft=soft: (soft, soft))
        assert connection_limit(1000) == limit


def test_the_page_of_a_service_listens_on_its_own_machine_by_default(tmp_path: Path) -> None:
    site = Site(tmp_path)
    port = int(site.url.rpartition(":")[2])
    assert answers(port) == 200
    with pytest.raises(requests.ConnectionError):
        answers(port, "127.0.0.2")
    site.service.close()
