"""Files are downloaded completely and once from a real XRootD server, or the error says why not."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.errors import FetchError, Unavailable
from tests.support.file_server import QUICK, fetch, left_in, root_file
from tests.support.paths import ROOT
from tests.support.waiting import free_port, wait_until
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher
from workers.data_loader.root_file import record_fault

pytest.importorskip("XRootD.client", reason="needs the Python package xrootd")
pytestmark = pytest.mark.skipif(shutil.which("xrootd") is None, reason="needs the server: apt install xrootd-server")

SIZE = 16 << 20  # more than a fetch receives ahead of what it writes
BODY, OTHER_BODY = root_file(1, SIZE), root_file(2, SIZE)
#: The package's user: the server does not run as root.
USER = "xrootd" if os.geteuid() == 0 else None

CONFIGURATION = """
xrd.port {port}
xrd.network nodnr
all.adminpath {folder}/admin
all.pidpath {folder}/admin
oss.localroot {folder}/files
all.export / readonly
"""


class XRootDServer:
    """An XRootD server on this machine with the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self.files = folder / "files"
        folder.chmod(0o755)
        self.files.mkdir()
        (folder / "admin").mkdir()
        (folder / "server.cfg").write_text(CONFIGURATION.format(port=self.port, folder=folder))
        if USER is not None:
            shutil.chown(folder / "admin", USER)
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        # The server changes its user itself: a fork in a process that uses the XRootD client may hang.
        command = ["xrootd", "-c", str(self.folder / "server.cfg"), "-n", "tests"]
        if USER is not None:
            command += ["-R", USER]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder / "admin", stdout=log, stderr=log)
        wait_until(self._accepts, f"an XRootD server; see {self.folder}/server.log", timeout_s=20)

    def _accepts(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        return True

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def put(self, name: str, body: bytes) -> str:
        """Replace a file of the server, and return its address."""
        (self.folder / "new").write_bytes(body)
        (self.folder / "new").chmod(0o644)
        os.replace(self.folder / "new", self.files / name)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"root://127.0.0.1:{self.port}//{name}"


@pytest.fixture(scope="module")
def running_server() -> Iterator[XRootDServer]:
    with tempfile.TemporaryDirectory(prefix="xrootd-") as folder:  # a short path, for the server's sockets
        server = XRootDServer(Path(folder))
        yield server
        server.kill()


@pytest.fixture
def server(running_server: XRootDServer) -> Iterator[XRootDServer]:
    """The server, with the wanted file as data_A.root."""
    running_server.put("data_A.root", BODY)
    yield running_server
    running_server.resume()


def of_the_record(url: str) -> Address:
    return Address(url, partial(record_fault, size=SIZE, adler32=f"{zlib.adler32(BODY):08x}"), SIZE)


def interrupted(server: XRootDServer, cache: Path) -> int:
    """Fetch from a server that stops answering in the middle; returns the number of bytes that were received."""
    received: list[int] = []

    def pause(done: int, total: int | None) -> None:
        received.append(done)
        server.pause()

    with pytest.raises(FetchError, match="did not answer in time"):
        fetch(server.url("data_A.root"), cache, control=FetchControl(pause), policy=replace(QUICK, attempts=1))
    server.resume()
    assert 0 < received[-1] < SIZE
    return received[-1]


def test_a_file_with_the_checksum_of_the_record_is_cached(server: XRootDServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    control = FetchControl(lambda *done: seen.append(done))
    path = Fetcher(tmp_path).fetch(of_the_record(server.url("data_A.root")), control)
    assert path.read_bytes() == BODY
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}
    assert seen[-1] == (SIZE, SIZE)


def test_a_wrong_file_of_the_same_size_is_fetched_again(server: XRootDServer, tmp_path: Path) -> None:
    url = server.put("replaced.root", OTHER_BODY)
    complete: list[int] = []

    def replace_file(done: int, total: int | None) -> None:
        if done == total:
            complete.append(done)
            server.put("replaced.root", BODY)

    assert Fetcher(tmp_path).fetch(of_the_record(url), FetchControl(replace_file)).read_bytes() == BODY
    assert complete == [SIZE, SIZE]
    assert left_in(tmp_path) == {"replaced.root", "replaced.root.version"}


def test_after_two_wrong_files_the_next_address_is_used(server: XRootDServer, tmp_path: Path) -> None:
    addresses = [of_the_record(server.put("wrong.root", OTHER_BODY)), of_the_record(server.url("data_A.root"))]
    path, address = Fetcher(tmp_path).fetch_first(addresses)
    assert (path.read_bytes(), address) == (BODY, addresses[1])
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}


def test_a_file_that_stays_wrong_is_named_with_its_checksum(server: XRootDServer, tmp_path: Path) -> None:
    address = of_the_record(server.put("wrong.root", OTHER_BODY))
    with pytest.raises(FetchError) as caught:
        Fetcher(tmp_path).fetch_first([address])
    assert re.search(rf"{re.escape(address.url)}: .*{zlib.adler32(BODY):08x}.*downloaded 2 times", str(caught.value))
    assert left_in(tmp_path) == set()


def test_a_missing_file_is_an_error_at_once(server: XRootDServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"missing\.root: .*not found") as caught:
        fetch(server.url("missing.root"), tmp_path)
    assert not caught.value.unreachable
    assert "attempts" not in str(caught.value)
    assert left_in(tmp_path) == set()


def test_a_download_is_resumed_after_a_read_timeout(server: XRootDServer, tmp_path: Path) -> None:
    received = interrupted(server, tmp_path)
    seen: list[int] = []
    control = FetchControl(lambda done, _: seen.append(done))
    path = Fetcher(tmp_path, QUICK).fetch(of_the_record(server.url("data_A.root")), control)
    assert path.read_bytes() == BODY
    assert seen[0] > received
    assert left_in(tmp_path) == {"data_A.root", "data_A.root.version"}


def test_a_file_that_changed_meanwhile_is_downloaded_from_the_start(server: XRootDServer, tmp_path: Path) -> None:
    interrupted(server, tmp_path)
    url = server.put("data_A.root", OTHER_BODY)
    server.kill()  # a server sends the old file as long as it has that open
    server.start()
    assert fetch(url, tmp_path, policy=QUICK).read_bytes() == OTHER_BODY


def test_a_cached_file_is_replaced_only_if_the_server_has_another_version(server: XRootDServer, tmp_path: Path) -> None:
    address, fetcher = Address(server.put("version.root", BODY)), Fetcher(tmp_path, QUICK)
    received: list[int] = []
    control = FetchControl(lambda done, _: received.append(done))
    first = fetcher.fetch(address).stat()
    path = fetcher.fetch(address, control, confirm=True)
    assert (path.stat().st_ino, received) == (first.st_ino, [])

    (server.files / "version.root").write_bytes(OTHER_BODY)  # in place: the server may have it open
    os.utime(server.files / "version.root", (0, 0))
    assert fetcher.fetch(address, control, confirm=True).read_bytes() == OTHER_BODY
    assert left_in(tmp_path) == {"version.root", "version.root.version"}


def test_a_download_is_resumed_after_a_restart_of_the_server(server: XRootDServer, tmp_path: Path) -> None:
    seen: list[int] = []

    def restart_once(done: int, total: int | None) -> None:
        seen.append(done)
        if len(seen) == 1:
            server.kill()
            server.start()

    path = fetch(server.url("data_A.root"), tmp_path, control=FetchControl(restart_once), policy=QUICK)
    assert path.read_bytes() == BODY
    assert seen == sorted(set(seen)), "no byte is received twice"


def test_a_fetch_from_a_silent_server_is_stopped_within_a_second(server: XRootDServer, tmp_path: Path) -> None:
    stop = threading.Event()

    def pause_and_stop(done: int, total: int | None) -> None:
        server.pause()
        threading.Timer(0.3, stop.set).start()

    with pytest.raises(Unavailable, match="stopped"):
        fetch(server.url("data_A.root"), tmp_path, control=FetchControl(pause_and_stop, stop=stop))
    assert "data_A.root.part" in left_in(tmp_path)


FETCH_UNTIL_SIGTERM = """
import signal, sys
from pathlib import Path
from common.errors import Unavailable
from workers.data_loader.remote.control import FetchControl
from workers.data_loader.remote.fetch import Address, Fetcher
control = FetchControl(lambda done, total: (print(done, flush=True), sys.stdin.readline()))
signal.signal(signal.SIGTERM, lambda *_: control.stop.set())
try:
    Fetcher(Path(sys.argv[2])).fetch(Address(sys.argv[1]), control)
except Unavailable:
    print("stopped", flush=True)
"""


#: Ends after the first bytes, while no request is under way.
READ_ONCE = """
import sys
from workers.data_loader.remote.policy import RetryPolicy
from workers.data_loader.remote.xrootd import xrootd_body
opened = xrootd_body(sys.argv[1], (0, ""), RetryPolicy())
print(len(next(opened.__enter__().chunks)), flush=True)
sys.stdin.readline()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("program", [FETCH_UNTIL_SIGTERM, READ_ONCE], ids=["after_sigterm", "with_the_file_open"])
def test_a_process_that_reads_from_a_silent_server_ends(server: XRootDServer, tmp_path: Path, program: str) -> None:
    command = [sys.executable, "-c", program, server.url("data_A.root"), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) < SIZE
            server.pause()
            if program is FETCH_UNTIL_SIGTERM:
                process.terminate()
            output, _ = process.communicate(timeout=10)  # the time-out of a read is 30 s
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert output.endswith("stopped\n")
    assert process.returncode == 0


def test_credentials_never_appear_in_errors(server: XRootDServer, tmp_path: Path) -> None:
    url = f"{server.url('missing.root')}?authz=s3cret".replace("://", "://me:s3cret@")
    with pytest.raises(FetchError, match="not found") as caught:
        fetch(url, tmp_path)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in caught.value.url
    assert not any("s3cret" in str(path) for path in tmp_path.rglob("*"))
