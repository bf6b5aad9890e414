"""Each kind of message is decoded as it was encoded; a body that its kind does not declare is rejected."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from dataclasses import asdict, replace
from typing import Any

import awkward as ak
import numpy as np
import pytest

from common import array_pickle, messages
from common.errors import MessageError
from common.messages import (
    MAX_CHUNKS,
    MAX_TIMELINE_BYTES,
    CancelRequest,
    Chunk,
    ChunkFailed,
    ChunkTask,
    DeadLetterNotice,
    Events,
    FetchProgress,
    FileIdentity,
    FileTask,
    FirstFiles,
    Message,
    Progress,
    QueueState,
    QueueStatus,
    RequeueNotice,
    Result,
    ResultFiles,
    RunCancelled,
    RunFailed,
    RunList,
    RunListRequest,
    RunPlan,
    RunRequest,
    RunStarted,
    RunSummary,
    SamplePlan,
    Selected,
    ServiceStatus,
    Software,
    Span,
    StatusRequest,
)
from common.names import is_name
from common.settings import MAX_CHUNK_ENTRIES, RunSettings
from physics import ANALYSES
from tests.support.paths import ROOT

RUN = "20260131-235959-demo-1f3a"
CHUNK = Chunk(RUN, "Zee", 100, 200)
FILE = FileIdentity("/data/Zee.root", 31363, "8bdc6dd8", "922a7153-123b-4dff-afaa-c2b7ee784372")
SETTINGS_2020 = ANALYSES.resolve(RunSettings())
SETTINGS_DEMO = ANALYSES.resolve(RunSettings(release="demo"))
SETTINGS = ANALYSES.resolve(
    RunSettings(data="/data", samples=("Zee", "llll"), lumi_ifb=7.3, fraction=0.1, pt_cuts_gev=(25.5,))
)
SPANS = (
    Span("waited", "data-loader", "loader-1", 1769903999.5, 1769904000.25, redeliveries=2),
    Span("read", "data-loader", "loader-1", 1769904000.25, 1769904001.125, redeliveries=2),
)
SOFTWARE = {"data-loader": Software("0.2.0", "abc123", "docker, Linux x86_64", {"python": "3.11.9", "numpy": "2.4.0"})}
MIB_8 = 8 * 1024 * 1024

JSON_MESSAGES: list[Message] = [
    RunRequest(RUN, 1769903999.123456, SETTINGS),
    FileTask(RUN, "Zee", SETTINGS),
    ChunkTask(CHUNK, SETTINGS),
    ChunkTask(CHUNK, SETTINGS, FILE),
    RunPlan(RUN, 1769903999.123456, SETTINGS),
    SamplePlan(RUN, "Zee", 898, (0, 500, 898), digest=SETTINGS_2020.digest),
    SamplePlan(RUN, "Zee", 898, (0, 500, 898), file=FILE),
    SamplePlan(RUN, "Zee", problem="no such file: ‘Zee’"),
    ChunkFailed(CHUNK, "basket 7 is broken"),
    ChunkFailed(CHUNK, "basket 7 is broken", spans=SPANS),
    RunStarted(RUN, SETTINGS),
    Progress("data-loader", CHUNK),
    Progress("analysis", CHUNK, SPANS),
    FetchProgress(RUN, "Zee", 10, None),
    Result(RUN, final=True, result={"toy": False, "yield": 0.1 + 0.2, "problems": [], "fit": None}),
    Result(RUN, final=True, result={}, timeline=zlib.compress(b"[]")),
    RunFailed(RUN, "no such sample"),
    RunFailed(RUN, "other settings", SETTINGS_2020.digest),
    StatusRequest(RUN, SETTINGS.digest),
    CancelRequest(RUN, SETTINGS.digest),
    RunCancelled(RUN),
    RunListRequest("1a2b"),
    RunList(
        "1a2b", (RunSummary(RUN, "complete", SETTINGS.digest, "hzz4l", "demo", 12, 1e9, 2.5, 1.1, 0.3, "a chunk"),)
    ),
    ResultFiles(RUN, {"result.json": b"{}", "m4l.png": bytes(range(256))}),
    ResultFiles(RUN, {"result.json": b"{}", "timeline.json": b"[]" * 1000}),
    FirstFiles(RUN, {"result.json": b"{}", "m4l.png": bytes(range(256))}),
    ServiceStatus(
        "data-loader", "host-7", "host", 7, "busy", RUN, str(CHUNK), 100, {"chunks": 9}, 1.5, 2**27, 1.0, 2.0, "0.2.0"
    ),
    QueueStatus({"events": QueueState(3, 16, 0), "dead-notices": QueueState(0, None, None)}, 1769904000.25),
    RequeueNotice(notice_id="1", queue="events", run_id=RUN, sample="Zee", start=0, stop=10),
]


def decode(kind: str, body: bytes) -> Message:
    return messages.decode(kind, body, ANALYSES)


def events(count: int) -> ak.Array:
    """Return events of random bits, NaN, infinities, subnormals and −0 included, which a conversion would change."""
    rng = np.random.default_rng(count)

    def floats(width: int) -> np.ndarray[Any, Any]:
        return rng.integers(0, 256, (count, 4 * width), np.uint8).view(np.float32).reshape(count, width)

    columns = {name: floats(4) for name in ("lep_pt", "lep_eta", "lep_phi", "lep_energy")}
    columns |= {name: rng.integers(-128, 128, (count, 4), np.int8) for name in ("lep_charge", "lep_type")}
    return ak.Array(columns | {"weight": floats(1)[:, 0]})


def events_message(count: int, sample: str = "Zee") -> Events:
    cutflow = {"read": count, "four_leptons": count, "pt_cuts": count}
    return Events(Chunk(RUN, sample, 0, count), SETTINGS_2020, cutflow, events(count), SPANS, SOFTWARE)


def selected(**changed: Any) -> ak.Array:
    columns = {
        "m4l": np.array([91.2, 125.0]),
        "m_z1": np.array([90, np.nan], np.float32),
        "m_z2": np.array([np.nan, 30], np.float32),
        "lead_pt": np.array([40, 50], np.float32),
        "channel": np.array([0, 2], np.int8),
        "weight": np.array([0.5, -0.5], np.float32),
    }
    return ak.Array(columns | changed)


def selected_message(array: ak.Array | None = None) -> Selected:
    cutflow = {"read": 9, "four_leptons": 8, "pt_cuts": 5, "charge": 3, "flavour": 2}
    return Selected(CHUNK, SETTINGS_DEMO, cutflow, selected() if array is None else array)


def bits(array: ak.Array) -> dict[str, tuple[str, bytes]]:
    return {name: (str(array[name].type), ak.to_numpy(array[name]).tobytes()) for name in array.fields}


# --- encoding and decoding ----------------------------------------------------------------


@pytest.mark.parametrize("message", JSON_MESSAGES, ids=lambda message: message.kind)
def test_a_message_without_an_array_is_decoded_as_it_was_encoded(message: Message) -> None:
    assert decode(message.kind, message.encode()) == message


def test_these_tests_cover_every_kind_of_message() -> None:
    kinds = {message.kind for message in JSON_MESSAGES} | {"events", "selected"}
    assert kinds == set(messages.KINDS)


@pytest.mark.parametrize(
    ("count", "sample"), [(0, "Zee"), (0, "data_A"), (1, "Zee"), (1000, "data_A"), (MAX_CHUNK_ENTRIES, "llll")]
)
def test_events_are_decoded_bit_for_bit_and_the_largest_chunk_fits(count: int, sample: str) -> None:
    message = events_message(count, sample)
    body = message.encode()
    assert len(body) < MIB_8
    back = decode("events", body)
    assert isinstance(back, Events)
    assert replace(back, events=None) == replace(message, events=None)
    assert bits(back.events) == bits(message.events)


@pytest.mark.parametrize("count", [0, 2])
def test_selected_events_are_decoded_bit_for_bit(count: int) -> None:
    message = selected_message(selected()[:count])
    back = decode("selected", message.encode())
    assert isinstance(back, Selected)
    assert replace(back, events=None) == replace(message, events=None)
    assert bits(back.events) == bits(message.events)


def test_settings_missing_in_a_run_request_are_those_of_the_data_loader() -> None:
    body = json.dumps({"run_id": "mine", "submitted": 0, "settings": {"samples": ["llll", "Zee"]}}).encode()
    assert decode("run-request", body) == RunRequest(
        "mine", 0.0, ANALYSES.resolve(RunSettings(samples=("Zee", "llll")))
    )
    assert RunRequest.decode(body, ANALYSES, replace(SETTINGS, fraction=0.3)).settings.fraction == 0.3


def test_a_sample_plans_chunks_lie_between_its_bounds() -> None:
    assert [str(chunk) for chunk in SamplePlan(RUN, "Zee", 898, (0, 500, 898)).chunks] == ["Zee[0:500]", "Zee[500:898]"]
    assert SamplePlan(RUN, "Zee").chunks == ()


# --- rejected messages ----------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(messages.KINDS))
def test_an_empty_an_oversized_and_a_foreign_body_are_refused(kind: str) -> None:
    arrays = {message.kind: message.encode() for message in (events_message(1), selected_message())}
    foreign = [body for other, body in arrays.items() if other != kind]
    if kind in arrays:
        foreign += [message.encode() for message in JSON_MESSAGES]
    for body in (b"\xff{", b"[]", b"{}", b"null", *foreign):
        with pytest.raises(MessageError):
            decode(kind, body)
    with pytest.raises(MessageError, match=f"{kind}: the message is empty"):
        decode(kind, b"")
    with pytest.raises(MessageError, match=f"{kind}: 8388609 bytes are more than the 8388608"):
        decode(kind, bytes(MIB_8 + 1))


def test_how_messages_are_decoded_is_derived_before_threads_decode_any() -> None:
    """Where two threads derive it at the same time, msgspec can crash the process."""
    program = (
        "from common import messages\n"
        "del messages.Chunk, messages.Name  # the annotations cannot be evaluated any more\n"
        "messages.decode('status-request', b'{\"run_id\": \"r\"}', {})\n"
        'messages.decode(\'progress\', b\'{"stage": "plan", "chunk": \'\n'
        '    b\'{"run_id": "r", "sample": "s", "start": 0, "stop": 1}}\', {})\n'
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_kind_is_refused_by_its_name() -> None:
    for kind in ("nonsense", "", "dead-letter"):
        with pytest.raises(MessageError, match=f"no message kind is called '{kind}'"):
            decode(kind, b"{}")


@pytest.mark.parametrize(
    "run_id", ["../../x", "a/b", "", "x\n", "a..b", "a.", "a" * 101, ".hidden", "-rf", "a b", "é", "a\0", 5]
)
@pytest.mark.parametrize("kind", ["run-request", "run-plan", "result", "chunk-task"])
def test_a_run_id_that_cannot_be_a_files_name_is_refused(kind: str, run_id: object) -> None:
    message = next(message for message in JSON_MESSAGES if message.kind == kind)
    content = json.loads(message.encode())
    (content["chunk"] if kind == "chunk-task" else content)["run_id"] = run_id
    with pytest.raises(MessageError):
        decode(kind, json.dumps(content).encode())
    assert not isinstance(run_id, str) or not is_name(run_id)


def test_names_of_a_hundred_characters_are_names() -> None:
    assert is_name("a" * 100)


@pytest.mark.parametrize(
    ("message", "changes", "expected"),
    [
        (ChunkTask(CHUNK, SETTINGS), {"chunk": {"run_id": RUN, "sample": "Zee", "start": 5, "stop": 4}}, "end before"),
        (ChunkTask(CHUNK, SETTINGS), {"chunk": {"run_id": RUN, "sample": "Zee", "start": -1, "stop": 4}}, ">= 0"),
        (ChunkTask(CHUNK, SETTINGS), {"chunk": {"run_id": RUN, "sample": "Zee", "start": 0, "stop": 2**63}}, "<= "),
        (ChunkTask(CHUNK, SETTINGS), {"chunk": {"run_id": RUN, "sample": "Zee", "start": 0}}, "field `stop`"),
        (ChunkTask(CHUNK, SETTINGS), {"chunk": {"run_id": RUN, "sample": "a/b", "start": 0, "stop": 1}}, "regex"),
        (ChunkTask(CHUNK, SETTINGS), {"settings": {"lumi_ifb": -1}}, "LUMI=-1"),
        (ChunkTask(CHUNK, SETTINGS), {"settings": {"data": "file:///etc"}}, "DATA='file:///etc'"),
        (RunRequest(RUN, 0.0, SETTINGS), {"settings": {"lumi": 5}}, f"run {RUN}: a run has no setting 'lumi'"),
        (RunRequest(RUN, 0.0, SETTINGS), {"settings": {"samples": ["Zee2"]}}, "Zee2"),
        (RunRequest(RUN, 0.0, SETTINGS), {"settings": None}, "Expected `object`"),
        (RunRequest(RUN, 0.0, SETTINGS), {"submitted": 1e300}, "submitted"),
        (RunPlan(RUN, 0.0, SETTINGS), {"submitted": -1}, "submitted"),
        (SamplePlan(RUN, "Zee"), {"entries": -1}, ">= 0"),
        (SamplePlan(RUN, "Zee"), {"bounds": [0, 10, 10]}, "bounds .* do not rise"),
        (SamplePlan(RUN, "Zee"), {"bounds": list(range(MAX_CHUNKS + 2))}, "more than 200000 chunks"),
        (SamplePlan(RUN, "Zee", file=FILE), {"file": {**asdict(FILE), "adler32": "B6A8DF64"}}, "regex"),
        (SamplePlan(RUN, "Zee"), {"bounds": [10, 0]}, "bounds .* do not rise"),
        (Progress("plan", CHUNK), {"stage": "unknown"}, "Invalid enum value 'unknown'"),
        (ResultFiles(RUN, {}), {"files": {"../../etc/passwd": ""}}, "regex"),
        (ResultFiles(RUN, {}), {"files": {"a.png": "%%%"}}, "base64"),
        (RunFailed(RUN, "so"), {"problem": None}, "Expected `str`"),
    ],
)
def test_a_field_out_of_its_range_is_refused_with_the_reason(
    message: Message, changes: dict[str, Any], expected: str
) -> None:
    content = json.loads(message.encode()) | changes
    with pytest.raises(MessageError, match=expected):
        decode(message.kind, json.dumps(content).encode())


@pytest.mark.parametrize("message", JSON_MESSAGES, ids=lambda message: message.kind)
def test_a_missing_field_is_refused_and_an_unknown_one_ignored(message: Message) -> None:
    content = json.loads(message.encode())
    by_kind: dict[type[Message], set[str]] = {
        ChunkTask: {"file"},
        SamplePlan: {"entries", "bounds", "problem", "file", "digest"},
        ChunkFailed: {"digest", "spans"},
        Progress: {"spans"},
        Result: {"timeline"},
        StatusRequest: {"digest"},
        RunFailed: {"digest"},
        RequeueNotice: {"run_id", "sample", "start", "stop", "digest"},
    }
    optional = by_kind.get(type(message), set())
    for name in content.keys() - optional:
        with pytest.raises(MessageError, match=f"missing required field `{name}`"):
            decode(message.kind, json.dumps({n: v for n, v in content.items() if n != name}).encode())
    assert decode(message.kind, json.dumps(content | {"of-a-later-version": 1}).encode()) == message


def test_json_nested_too_deeply_for_python_is_refused() -> None:
    for kind in ("result", "run-request", "run-failed"):
        body = b'{"run_id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        with pytest.raises(MessageError):
            decode(kind, body.replace(b'"x"', b'"result"' if kind == "result" else b'"settings"'))


def test_a_chunk_cannot_end_before_it_starts() -> None:
    with pytest.raises(MessageError, match=r"Zee\[5:4\]"):
        Chunk(RUN, "Zee", 5, 4)
    assert str(Chunk(RUN, "Zee", 5, 5)) == "Zee[5:5]"


def test_a_body_too_large_for_the_broker_is_refused_by_the_sender() -> None:
    too_many = events_message(120_000)
    with pytest.raises(MessageError, match=r"Zee\[0:120000\] .*CHUNK_ENTRIES.*more than the 8388608"):
        too_many.encode()
    with pytest.raises(MessageError, match=r"result-files: .* more than the 8388608"):
        ResultFiles(RUN, {"m4l.png": bytes(7_000_000)}).encode()


def test_a_timeline_larger_than_a_message_is_sent_compressed_and_a_bomb_is_refused() -> None:
    files = {"result.json": b"{}", "timeline.json": b'{"ph":"X"},' * 1_000_000}
    body = ResultFiles(RUN, files).encode()
    assert decode("result-files", body) == ResultFiles(RUN, files)
    plots = {"m4l.png": bytes(6_290_000)}
    assert decode("result-files", ResultFiles(RUN, files | plots).encode()) == ResultFiles(
        RUN, {"result.json": b"{}", **plots}
    )
    for content, expected in (
        (zlib.compress(bytes(MAX_TIMELINE_BYTES + 1)), "more than"),
        (zlib.compress(b"[]")[:-1], "incomplete"),
        (b"[]", "cannot be decompressed"),
    ):
        packed = json.dumps({"run_id": RUN, "files": {"timeline.json": base64.b64encode(content).decode()}})
        with pytest.raises(MessageError, match=expected):
            decode("result-files", packed.encode())


# --- arrays and their headers ------------------------------------------------------------


def with_header(**changes: Any) -> bytes:
    message = events_message(2)
    chunk = {"run_id": RUN, "sample": "Zee", "start": 0, "stop": 2}
    header = {"chunk": chunk, "settings": asdict(message.settings), "cutflow": message.cutflow}
    return array_pickle.dumps(header | changes, message.events)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cutflow": {"read": -1}}, "cutflow"),
        ({"cutflow": {"read": 1.5}}, "cutflow"),
        ({"cutflow": {"no_such_step": 1}}, "steps that 2020e-13tev has not"),
        ({"settings": {"release": "2019"}}, "release '2019' is not known"),
        ({"settings": {"release": "../.."}}, "release"),
        ({"settings": {"fraction": 2.0}}, "FRACTION"),
        ({"chunk": {"run_id": RUN, "sample": "Zee2", "start": 0, "stop": 2}}, "sample 'Zee2' is not in release"),
        ({"chunk": {"run_id": "../x", "sample": "Zee", "start": 0, "stop": 2}}, "run_id"),
        ({"chunk": {"run_id": RUN, "sample": "Zee", "start": 2, "stop": 0}}, "end before they start"),
        ({"chunk": None}, "chunk"),
    ],
)
def test_a_header_of_an_array_that_is_out_of_its_range_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert isinstance(decode("events", with_header()), Events)
    with pytest.raises(MessageError, match=expected):
        decode("events", with_header(**changes))


def without(array: ak.Array, name: str) -> ak.Array:
    return array[[field for field in array.fields if field != name]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (without(events(2), "lep_phi"), "has the fields"),
        (ak.with_field(events(2), [1, 2], "lep_m"), "has the fields"),
        (ak.values_astype(events(2), np.float64), "field 'lep_pt' is .*float64.* not a plain float32"),
        (ak.with_field(events(2), events(2).lep_pt[:, :3], "lep_pt"), "'lep_pt' does not have 4 values"),
        (ak.with_field(events(2), ak.Array([[1.0] * 4, [2.0] * 4]), "lep_eta"), "'lep_eta' does not have 4 values"),
        (ak.with_parameter(events(2), "units", "MeV"), "not plain records"),
        (ak.with_name(events(2), "Event"), "not plain records"),
        (ak.mask(events(2), [True, False]), "not plain records"),
        (ak.Array([1.0, 2.0]), "not plain records"),
    ],
)
def test_an_array_of_other_fields_or_types_is_refused(array: ak.Array, expected: str) -> None:
    with pytest.raises(MessageError, match=expected):
        decode("events", replace(events_message(2), events=array).encode())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"channel": np.array([0, 3], np.int8)}, "field 'channel' has a value outside 0 to 2"),
        ({"channel": np.array([-1, 0], np.int8)}, "field 'channel' has a value outside 0 to 2"),
        ({"weight": np.array([1, np.nan], np.float32)}, "not a number"),
        ({"weight": np.array([1, np.inf], np.float32)}, "infinite"),
        ({"m4l": np.array([np.nan, 125.0])}, "not a number"),
        ({"m4l": np.array([91.2, 125.0], np.float32)}, "'m4l' is .*float32.* not a plain float64"),
        ({"weight": np.array([0.5, 0.5])}, "'weight' is .*float64"),
    ],
)
def test_selected_events_out_of_their_range_are_refused(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(MessageError, match=expected):
        decode("selected", selected_message(selected(**changed)).encode())


# --- dead letters ----------------------------------------------------------------------


OF_A_RUN = [
    message
    for message in JSON_MESSAGES
    if not isinstance(message, ServiceStatus | QueueStatus | RunListRequest | RunList)
]


@pytest.mark.parametrize("message", [*OF_A_RUN, events_message(1), selected_message()], ids=lambda m: m.kind)
def test_the_headers_of_every_message_of_a_run_name_it_as_a_dead_letter(message: Message) -> None:
    notice = DeadLetterNotice.from_headers("a queue", message.headers, problem="why")
    assert notice.run_id == RUN
    assert notice.chunk == getattr(message, "chunk", None)
    assert notice.sample == getattr(message, "sample", notice.chunk and notice.chunk.sample)


def test_a_dead_letter_without_a_run_has_no_chunk_and_unknown_headers_are_ignored() -> None:
    notice = DeadLetterNotice.from_headers(
        "events", {"x-death": [{"count": 1}], "problem": b"\xff", "run_id": None}, problem="why"
    )
    assert notice == DeadLetterNotice(queue="events", problem="why")
    assert notice.chunk is None


@pytest.mark.parametrize(
    "headers",
    [
        {"run_id": "../../x"},
        {"run_id": b"run"},
        {"run_id": 5},
        {"run_id": ["run"]},
        {"run_id": RUN, "sample": "a/b"},
        {"run_id": RUN, "sample": "Zee", "start": "0", "stop": 5},
        {"run_id": RUN, "sample": "Zee", "start": -5, "stop": 5},
        {"run_id": RUN, "sample": "Zee", "start": True, "stop": 5},
        {"run_id": RUN, "sample": "Zee", "start": 5, "stop": 4},
        {"run_id": RUN, "sample": "Zee", "start": 0, "stop": 2**63},
        {"run_id": RUN, "sample": "Zee", "start": float("nan"), "stop": 4},
        {"run_id": RUN, "sample": "Zee", "start": {}, "stop": object()},
    ],
)
def test_invalid_headers_of_a_dead_letter_are_refused(headers: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        DeadLetterNotice.from_headers("events", headers, problem="why")
