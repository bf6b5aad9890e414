"""The file of a sample is found or fetched, is the one that the release or the run's plan says, or is named."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common import topology
from common.analyses import Analysis
from common.errors import DataError, SettingsError
from common.messages import (
    ChunkFailed,
    ChunkTask,
    Events,
    FileIdentity,
    FileTask,
    RunPlan,
    RunRequest,
    RunStarted,
    SamplePlan,
)
from common.service import serve
from common.settings import RunSettings, read
from common.transport.embedded import EmbeddedTransport
from physics import ANALYSES
from tests.support.file_server import QUICK, Request, ScriptedServer, serving
from tests.support.real_data import ANALYSIS, DATA, SIMULATION, four_leptons, write_file
from workers.data_loader import root_file
from workers.data_loader.remote.fetch import Fetcher, cache_path
from workers.data_loader.service import DataLoader
from workers.data_loader.sources import addresses, check_directory, locate

EVENTS = [four_leptons(50e3, 40e3, 30e3, 20e3)] * 20


pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a directory with the file of ``DATA`` in the layout of the release."""
    (tmp_path / "data" / "Data").mkdir(parents=True)
    write_file(tmp_path / "data" / DATA.file, EVENTS)
    return tmp_path / "data"


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "cache", QUICK)


def of_directory(directory: Path) -> RunSettings:
    return RunSettings(data=str(directory), lumi_ifb=10.0, pt_cuts_gev=(), chunk_entries=10)


# --- a directory of the user ---


def test_a_file_is_found_in_the_layout_of_the_release_or_flat(tmp_path: Path, fetcher: Fetcher) -> None:
    settings = of_directory(tmp_path)
    flat = write_file(tmp_path / Path(DATA.file).name, EVENTS)
    assert locate(DATA, ANALYSIS, settings, fetcher).path == flat

    (tmp_path / "Data").mkdir()
    shutil.copy(flat, tmp_path / DATA.file)
    assert locate(DATA, ANALYSIS, settings, fetcher).path == tmp_path / DATA.file

    check_directory(ANALYSIS, settings)
    with pytest.raises(DataError, match=r"mc_410000.*no such file.*--data"):
        locate(SIMULATION, ANALYSIS, settings, fetcher)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ENOTCONN])
def test_a_directory_or_file_that_cannot_be_read_is_named_with_the_cause(
    number: int, data: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: str | os.PathLike[str], **options: bool) -> os.stat_result:
        if str(path).startswith(str(data)):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(SettingsError, match=f"^DATA='{data}'.*{os.strerror(number)}"):
        check_directory(ANALYSIS, of_directory(data))
    with pytest.raises(DataError, match=f"^{data / DATA.file}: {os.strerror(number)}"):
        locate(DATA, ANALYSIS, of_directory(data), fetcher)


def test_a_name_that_is_too_long_is_named_with_the_cause(fetcher: Fetcher) -> None:
    settings = read({"DATA": "a" * 300}).run
    with pytest.raises(SettingsError, match=r"aaaa.*too long"):
        check_directory(ANALYSIS, settings)
    with pytest.raises(DataError, match=r"aaaa.*too long"):
        locate(DATA, ANALYSIS, settings, fetcher)


def zero_free_list(content: bytearray) -> None:
    content[16:24] = bytes(8)


def one_byte_more(content: bytearray) -> None:
    content += b"x"


def half_of_it(content: bytearray) -> None:
    del content[len(content) // 2 :]


def earlier_end(content: bytearray) -> None:
    content[12:16] = (len(content) - 100).to_bytes(4, "big")


def other_free_segment(content: bytearray) -> None:
    content[-8:-4] = (len(content) - 100).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("break_file", "cause"),
    [
        (zero_free_list, "was not closed by the program that wrote it"),
        (one_byte_more, "was not closed"),
        (half_of_it, "is truncated"),
        (earlier_end, "was not closed"),
        (other_free_segment, "was not closed: its list of free segments"),
        (bytearray.clear, "not a ROOT file"),
    ],
)
def test_a_file_that_was_not_closed_is_named(
    break_file: Callable[[bytearray], None], cause: str, data: Path, fetcher: Fetcher
) -> None:
    content = bytearray((data / DATA.file).read_bytes())
    break_file(content)
    (data / DATA.file).write_bytes(content)
    with pytest.raises(DataError, match=f"^{data / DATA.file}: .*{cause}"):
        locate(DATA, ANALYSIS, of_directory(data), fetcher)


# --- the file that a run was planned with ---


def planned(loader: DataLoader, settings: RunSettings) -> tuple[SamplePlan, list[ChunkTask]]:
    answers = loader.handle(FileTask("run", DATA.name, settings))
    (plan,) = [answer for answer in answers if isinstance(answer, SamplePlan)]
    return plan, [answer for answer in answers if isinstance(answer, ChunkTask)]


def test_the_plan_says_location_size_checksum_and_uuid_of_the_file(data: Path, tmp_path: Path) -> None:
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    plan, tasks = planned(loader, of_directory(data))
    path = data / DATA.file
    assert plan.file is not None
    assert (plan.file.location, plan.file.bytes) == (str(path), path.stat().st_size)
    assert plan.file.adler32 == f"{zlib.adler32(path.read_bytes()):08x}"
    assert plan.file.uuid == root_file.uuid_of(path)
    assert [task.file for task in tasks] == [plan.file]


def test_chunks_of_a_file_that_was_replaced_fail(data: Path, tmp_path: Path) -> None:
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    _, (task,) = planned(loader, of_directory(data))
    assert isinstance(loader.handle(task)[0], Events)

    path, times = data / DATA.file, (data / DATA.file).stat()
    write_file(tmp_path / "other.root", EVENTS)
    (tmp_path / "other.root").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (answer,) = loader.handle(task)
    assert isinstance(answer, ChunkFailed)
    assert answer.problem.startswith(f"{path}: this is not the file that the run was planned with: ")
    assert f"UUID {root_file.uuid_of(path)} instead of " in answer.problem


def test_a_copy_of_the_file_with_another_time_is_the_same_file(data: Path, tmp_path: Path) -> None:
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    _, (task,) = planned(loader, of_directory(data))
    shutil.copy(data / DATA.file, tmp_path / "copy.root")
    (tmp_path / "copy.root").replace(data / DATA.file)
    assert isinstance(loader.handle(task)[0], Events)


@pytest.mark.parametrize("size", [0, 100, 40_000])
def test_a_toy_file_that_a_crash_has_cut_is_made_again(size: int, fetcher: Fetcher) -> None:
    settings = ANALYSES.resolve(RunSettings(release="demo", demo_events=1000))
    demo = ANALYSES["demo"]
    path = locate(demo.sample("llll"), demo, settings, fetcher).path
    complete = path.read_bytes()
    os.truncate(path, size)

    assert locate(demo.sample("llll"), demo, settings, fetcher).path == path

    assert root_file.fault(path) is None
    assert path.stat().st_size == len(complete) > size


def test_replicas_with_caches_of_their_own_read_each_others_plans_of_the_demo(tmp_path: Path) -> None:
    loaders = [DataLoader(read({"CACHE": str(tmp_path / name)})) for name in "ab"]
    settings = ANALYSES.resolve(RunSettings(release="demo", demo_events=1000, chunk_entries=10))
    _, tasks = planned(loaders[0], settings)
    assert isinstance(loaders[1].handle(tasks[-1])[0], Events)


def test_a_checksum_is_computed_once_until_the_file_changes(data: Path) -> None:
    path = data / DATA.file
    first = root_file.checksum_of(path)
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert root_file.checksum_of(path) == first
    os.utime(path)
    assert root_file.checksum_of(path) == f"{zlib.adler32(bytes(len(content))):08x}"


def test_the_checksum_of_a_large_file_is_kept_beside_it_until_the_file_changes(tmp_path: Path) -> None:
    path, long_ago_ns = tmp_path / "data" / "large.root", 10**18
    path.parent.mkdir()
    path.write_bytes(bytes(17 * 2**20))
    os.utime(path, ns=(long_ago_ns, long_ago_ns))
    # Each cache directory is another process: a process remembers the checksum for the directory it was asked with.
    first = root_file.checksum_of(path, tmp_path / "1")
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(long_ago_ns, long_ago_ns))
    assert [one.name for one in path.parent.glob(".*")] == [".large.root.adler32"]
    assert root_file.checksum_of(path, tmp_path / "2") == first
    os.utime(path)
    assert root_file.checksum_of(path, tmp_path / "3") == f"{zlib.adler32(path.read_bytes()):08x}" != first


@pytest.mark.parametrize(("mode", "place"), [(0o755, "data/.large.root.adler32"), (0o555, "cache/checksums/*.adler32")])
def test_a_checksum_is_kept_in_the_cache_where_the_folder_is_read_only(tmp_path: Path, mode: int, place: str) -> None:
    path = tmp_path / "data" / "large.root"
    path.parent.mkdir()
    path.write_bytes(bytes(17 * 2**20))
    os.utime(path, ns=(10**18, 10**18))
    path.parent.chmod(mode)
    try:
        found = root_file.checksum_of(path, tmp_path / "cache")
    finally:
        path.parent.chmod(0o755)
    kept = [one.relative_to(tmp_path) for one in tmp_path.rglob("*.adler32")]
    assert [one.match(place) for one in kept] == [True]
    assert (tmp_path / kept[0]).read_text().split()[-1] == found == f"{zlib.adler32(path.read_bytes()):08x}"


# --- the addresses of a release ---


class Site:
    """Files by path, and the paths that were requested."""

    def __init__(self, files: dict[str, list[bytes]]) -> None:
        self.files = files
        self.requested: list[str] = []

    def __call__(self, request: Request) -> None:
        self.requested.append(request.path)
        bodies = self.files.get(request.path, [])
        if bodies:
            request.reply(200, bodies.pop(0) if len(bodies) > 1 else bodies[0])
        else:
            request.reply(404, b"no")


def release_at(server: ScriptedServer, body: bytes) -> Analysis:
    """Return a release whose record and older locations are on a server."""
    sample = replace(DATA, entries=len(EVENTS), bytes=len(body), adler32=f"{zlib.adler32(body):08x}")
    return replace(
        ANALYSIS, record_urls=(server.url("/record/"),), other_urls=(server.url("/older/"),), samples=(sample,)
    )


def test_a_wrong_file_of_the_record_is_replaced_by_the_older_one_with_its_entries(
    server: ScriptedServer, data: Path, tmp_path: Path, fetcher: Fetcher
) -> None:
    body = (data / DATA.file).read_bytes()
    packed_differently = write_file(tmp_path / "older.root", EVENTS, basket=5).read_bytes()
    analysis = release_at(server, body)
    site = Site({f"/record/{DATA.file}": [packed_differently], f"/older/{DATA.file}": [packed_differently]})
    server.script = [site]

    file = locate(analysis.samples[0], analysis, RunSettings(), fetcher)

    assert site.requested == [f"/record/{DATA.file}"] * 2 + [f"/older/{DATA.file}"]
    assert file.location == server.url(f"/older/{DATA.file}")
    assert file.path.read_bytes() == packed_differently


def test_an_error_names_the_sizes_checksums_and_entries_expected_and_found(
    server: ScriptedServer, data: Path, tmp_path: Path, fetcher: Fetcher
) -> None:
    body = bytearray((data / DATA.file).read_bytes())
    analysis = release_at(server, bytes(body))
    sample = analysis.samples[0]
    body[-1] ^= 1
    fewer = write_file(tmp_path / "fewer.root", EVENTS[:5]).read_bytes()
    server.script = [Site({f"/record/{DATA.file}": [bytes(body)], f"/older/{DATA.file}": [fewer]})]

    with pytest.raises(DataError) as caught:
        locate(sample, analysis, RunSettings(), fetcher)

    for words in (
        server.url(f"/record/{DATA.file}: the file has {len(body)} bytes and Adler-32 {zlib.adler32(body):08x}"),
        f"the record says {len(body)} bytes and {sample.adler32} (it was downloaded 2 times)",
        server.url(f"/older/{DATA.file}: tree 'mini' has 5 entries; the record says 20"),
    ):
        assert words in str(caught.value)


def test_a_damaged_file_in_the_cache_is_fetched_again(server: ScriptedServer, data: Path, fetcher: Fetcher) -> None:
    body = (data / DATA.file).read_bytes()
    analysis = release_at(server, body)
    sample = analysis.samples[0]
    server.script = [Site({f"/record/{DATA.file}": [body]})]
    path = cache_path(server.url(f"/record/{DATA.file}"), fetcher.cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(body)))
    assert locate(sample, analysis, RunSettings(), fetcher).path.read_bytes() == body


def test_a_chunk_is_read_from_the_location_of_the_plan_alone(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    body = (data / DATA.file).read_bytes()
    analysis = release_at(server, body)
    sample = analysis.samples[0]
    other = write_file(tmp_path / "older.root", EVENTS, basket=5).read_bytes()
    site = Site({f"/record/{DATA.file}": [body], f"/older/{DATA.file}": [other]})
    server.script = [site]
    plan = locate(sample, analysis, RunSettings(), Fetcher(tmp_path / "a", QUICK)).identity()
    assert locate(sample, analysis, RunSettings(), Fetcher(tmp_path / "b", QUICK), planned=plan).identity() == plan

    site.files[f"/record/{DATA.file}"] = []
    with pytest.raises(DataError, match="HTTP 404"):
        locate(sample, analysis, RunSettings(), Fetcher(tmp_path / "c", QUICK), planned=plan)
    elsewhere = replace(plan, location=server.url(f"/gone/{DATA.file}"))
    with pytest.raises(DataError, match="not at an address of the sample"):
        locate(sample, analysis, RunSettings(), Fetcher(tmp_path / "d", QUICK), planned=elsewhere)


def test_the_2020_release_is_checked_against_its_record_at_its_location_first() -> None:
    found = addresses(DATA, ANALYSIS, RunSettings())
    assert [address.bytes for address in found] == [33765] * 2 + [None] * 3
    assert found[1].url == (
        "root://eospublic.cern.ch//eos/opendata/atlas/OutreachDatasets/2020-08-19/4lep/Data/data_A.4lep.root"
    )


# --- versions of the files at a user's address ---


class VersionedSite:
    """One file, with the headers that state its version; ``answers`` has the status of each answer."""

    def __init__(self, body: bytes, **headers: str) -> None:
        self.answers: list[int] = []
        self.put(body, **headers)

    def put(self, body: bytes, **headers: str) -> None:
        self.body, self.headers = body, headers

    def __call__(self, request: Request) -> None:
        is_known = request.headers.get("If-None-Match", "-") == self.headers.get("ETag")
        self.answers.append(304 if is_known else 200)
        with contextlib.suppress(OSError):  # the client may read the headers alone
            request.reply(self.answers[-1], b"" if is_known else self.body, **self.headers)


def of_address(server: ScriptedServer) -> RunSettings:
    return replace(of_directory(Path()), data=server.url("/"))


def loader_with_cache(folder: Path) -> DataLoader:
    return DataLoader(read({"CACHE": str(folder)}))


def identity_in(loader: DataLoader, settings: RunSettings) -> FileIdentity:
    plan, _ = planned(loader, settings)
    assert plan.file is not None, plan.problem
    return plan.file


@pytest.fixture
def versions(tmp_path: Path) -> tuple[bytes, bytes]:
    """Two files of the same name with other events; the second one is older than the first by its date."""
    events = (EVENTS, [four_leptons(60e3, 40e3, 30e3, 20e3)] * 20)
    first, second = (write_file(tmp_path / f"{number}.root", one) for number, one in enumerate(events))
    return first.read_bytes(), second.read_bytes()


NEWER, OLDER = "Fri, 24 Jan 2020 10:00:00 GMT", "Wed, 22 Jan 2020 10:00:00 GMT"


@pytest.mark.parametrize(
    ("first", "second"),
    [({"ETag": '"v1"'}, {"ETag": '"v2"'}), ({"Last_Modified": NEWER}, {"Last_Modified": OLDER}), ({}, {})],
)
def test_a_run_reads_the_file_that_an_address_has_now(
    first: dict[str, str], second: dict[str, str], versions: tuple[bytes, bytes], server: ScriptedServer, tmp_path: Path
) -> None:
    site = VersionedSite(versions[0], **first)
    server.script = [site]
    loader = loader_with_cache(tmp_path / "cache")
    for body, headers in zip(versions, (first, second), strict=True):
        site.put(body, **headers)
        assert identity_in(loader, of_address(server)).adler32 == f"{zlib.adler32(body):08x}"


@pytest.mark.parametrize(
    ("version", "answers"), [({"ETag": '"v1"'}, [200, 304]), ({"Last_Modified": NEWER}, [200, 200])]
)
def test_an_unchanged_file_of_an_address_is_confirmed_once_a_run(
    version: dict[str, str], answers: list[int], versions: tuple[bytes, bytes], server: ScriptedServer, tmp_path: Path
) -> None:
    site = VersionedSite(versions[0], **version)
    server.script = [site]
    loader = loader_with_cache(tmp_path / "cache")
    before = locate(DATA, ANALYSIS, of_address(server), Fetcher(tmp_path / "cache", QUICK)).path.stat()
    _, tasks = planned(loader, replace(of_address(server), chunk_entries=5))
    assert all(isinstance(loader.handle(task)[0], Events) for task in tasks)
    assert site.answers == answers
    assert cache_path(server.url(f"/{DATA.file}"), tmp_path / "cache").stat().st_ino == before.st_ino


def test_a_data_loader_with_an_older_copy_than_planned_fetches_the_planned_file(
    versions: tuple[bytes, bytes], server: ScriptedServer, tmp_path: Path
) -> None:
    site = VersionedSite(versions[0], ETag='"v1"')
    server.script = [site]
    loaders = [loader_with_cache(tmp_path / name) for name in "ab"]
    for loader in loaders:
        planned(loader, of_address(server))
    site.put(versions[1], ETag='"v2"')
    _, tasks = planned(loaders[0], replace(of_address(server), chunk_entries=5))
    assert all(isinstance(loaders[1].handle(task)[0], Events) for task in tasks)
    assert site.answers == [200, 200, 200, 200]


@pytest.mark.parametrize("version", [{"ETag": '"v2"'}, {}])
def test_of_a_file_that_changed_after_its_plan_the_server_is_asked_once(
    version: dict[str, str], versions: tuple[bytes, bytes], server: ScriptedServer, tmp_path: Path
) -> None:
    site = VersionedSite(versions[0], ETag='"v1"')
    server.script = [site]
    loaders = [loader_with_cache(tmp_path / name) for name in "ab"]
    _, tasks = planned(loaders[0], replace(of_address(server), chunk_entries=5))
    site.put(versions[1], **version)
    planned(loaders[1], of_address(server))
    site.answers.clear()
    for task in tasks:
        (answer,) = loaders[1].handle(task)
        assert isinstance(answer, ChunkFailed)
        assert "not the file that the run was planned with" in answer.problem
    assert len(site.answers) == 1
    _, tasks = planned(loaders[0], replace(of_address(server), chunk_entries=5))
    assert all(isinstance(loaders[1].handle(task)[0], Events) for task in tasks)


def test_without_the_server_the_cached_copy_is_read_and_marked(versions: tuple[bytes, bytes], tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "cache", QUICK)
    with serving() as server:
        server.script = [VersionedSite(versions[0], ETag='"v1"')]
        settings = of_address(server)
        assert locate(DATA, ANALYSIS, settings, fetcher).identity().is_confirmed
    file = locate(DATA, ANALYSIS, settings, fetcher)
    assert file.path.read_bytes() == versions[0]
    assert not file.identity().is_confirmed
    file.check(file.identity())


def test_a_file_that_its_server_does_not_have_any_more_is_not_read_from_the_cache(
    versions: tuple[bytes, bytes], server: ScriptedServer, fetcher: Fetcher
) -> None:
    server.script = [VersionedSite(versions[0], ETag='"v1"'), lambda request: request.reply(404, b"no")]
    locate(DATA, ANALYSIS, of_address(server), fetcher)
    with pytest.raises(DataError, match="HTTP 404 Not Found"):
        locate(DATA, ANALYSIS, of_address(server), fetcher)


@pytest.mark.parametrize("damaged", [bytes(4), b"", b"\xff", b'"v1"\n'])
def test_a_damaged_version_in_the_cache_is_not_used(
    damaged: bytes, versions: tuple[bytes, bytes], server: ScriptedServer, fetcher: Fetcher
) -> None:
    server.script = [VersionedSite(versions[0], ETag='"v1"')]
    path = locate(DATA, ANALYSIS, of_address(server), fetcher).path
    path.with_name(f"{path.name}.version").write_bytes(damaged)
    assert locate(DATA, ANALYSIS, of_address(server), fetcher).path.read_bytes() == versions[0]
    assert "If-None-Match" not in server.requests[1]


def test_a_cached_file_of_the_record_needs_no_server(server: ScriptedServer, data: Path, fetcher: Fetcher) -> None:
    body = (data / DATA.file).read_bytes()
    analysis = release_at(server, body)
    server.script = [VersionedSite(body, ETag='"v1"')]
    for _ in range(2):
        assert locate(analysis.samples[0], analysis, RunSettings(), fetcher).identity().is_confirmed
    assert len(server.requests) == 1


# --- credentials of the user's address ---


@pytest.mark.parametrize("form", ["http://me:s3cret@{}/4lep/", "http://s3cret:@{}/4lep", "http://{}/4lep?token=s3cret"])
def test_credentials_of_the_address_reach_the_server_and_nothing_else(
    form: str, server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    body = (data / DATA.file).read_bytes()
    site = Site({f"/4lep/{DATA.file}{query}": [body] for query in ("", "?token=s3cret")})
    server.script = [site]
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    environment = {"DATA": form.format(f"127.0.0.1:{server.server_port}"), "SAMPLES": DATA.name}
    settings = ANALYSES.resolve(read(environment).run)

    begun = loader.handle(RunRequest("run", 1.0, settings))
    shown = [message for message in begun if isinstance(message, RunStarted | RunPlan)]
    (task,) = [message for message in begun if isinstance(message, FileTask)]
    answers = loader.handle(task)
    (plan,) = [answer for answer in answers if isinstance(answer, SamplePlan)]
    site.files.clear()
    shutil.rmtree(tmp_path / "cache")
    failed = loader.handle(task)

    assert plan.file is not None, plan.problem
    assert plan.file.location == server.url(f"/4lep/{DATA.file}")
    authorization = base64.b64decode(server.requests[0].get("Authorization", "").removeprefix("Basic ")).decode()
    assert "s3cret" in site.requested[0] + authorization
    assert len(shown) == 2
    assert "s3cret" not in str([*shown, plan, failed, settings.to_result(toy=False)])


# --- a service ---


def test_a_stopping_service_ends_a_fetch_within_a_second_and_keeps_its_message(
    server: ScriptedServer, tmp_path: Path
) -> None:
    requested = threading.Event()

    def silent(request: Request) -> None:
        requested.set()
        request.server.release.wait(10)

    server.script = [silent]
    transport, stop = EmbeddedTransport(), threading.Event()
    session = transport.open([topology.follower("run")])
    settings = read({"DATA": server.url("/"), "SAMPLES": DATA.name, "CACHE": str(tmp_path)})
    loader = DataLoader(settings)
    loop = threading.Thread(target=serve, args=(loader, transport.open(loader.consumes), stop))
    loop.start()
    session.publish([FileTask("run", DATA.name, settings.run)])
    assert requested.wait(10)
    stop.set()
    loop.join(1)
    assert not loop.is_alive()
    assert transport.depth(topology.CHUNKS.name) == 1


def test_the_bytes_of_a_download_are_heartbeats_of_the_service(
    server: ScriptedServer, data: Path, tmp_path: Path
) -> None:
    body = (data / DATA.file).read_bytes()
    server.script = [lambda request: request.reply(200, body)]
    loader = DataLoader(read({"CACHE": str(tmp_path / "cache")}))
    heartbeats: list[None] = []
    loader.heartbeat = lambda: heartbeats.append(None)
    loader.handle(FileTask("run", DATA.name, ANALYSES.resolve(RunSettings(data=server.url("/")))))
    assert heartbeats
