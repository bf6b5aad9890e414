"""Reading a pickled message never runs its content nor uses much memory, and returns valid arrays unchanged."""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import json
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import array_pickle, messages
from common.errors import MessageError
from common.messages import Chunk, Events
from common.schema import Column
from common.settings import RunSettings
from physics import ANALYSES

SCHEMA = {"pt": Column("float32", 2), "charge": Column("int8")}
HEADER = {"text": "H→ZZ*", "number": 1.5, "cutflow": {"read": 3}}
CANARY = "HZZ_CANARY"


def array(events: int = 3) -> ak.Array:
    pt = np.arange(2 * events, dtype=np.float32).reshape(events, 2)
    return ak.Array({"pt": pt, "charge": np.ones(events, np.int8)})


def valid() -> bytes:
    return array_pickle.dumps(HEADER, array())


def read(body: bytes) -> ak.Array:
    return array_pickle.loads(body).array(SCHEMA)


# --- valid messages ---------------------------------------------------------


@pytest.mark.parametrize("events", [0, 1, 1000])
def test_header_and_array_survive_bit_for_bit(events: int) -> None:
    unpickled = array_pickle.loads(array_pickle.dumps(HEADER, array(events)))
    back = unpickled.array(SCHEMA)
    assert json.loads(unpickled.header) == HEADER
    assert back.layout.form == array(events).layout.form
    assert ak.to_numpy(back.pt).tobytes() == ak.to_numpy(array(events).pt).tobytes()
    assert ak.to_numpy(back.charge).tobytes() == ak.to_numpy(array(events).charge).tobytes()


def test_dumps_writes_an_ordinary_pickle_of_an_awkward_array() -> None:
    content = pickle.loads(valid())
    assert json.loads(content["header"]) == HEADER
    assert isinstance(content["array"], ak.Array)
    assert ak.array_equal(content["array"], array(), dtype_exact=True)


def test_an_array_that_was_read_can_be_written_again() -> None:
    assert ak.array_equal(read(array_pickle.dumps(HEADER, read(valid()))), array(), dtype_exact=True)


# --- pickles that would run code ------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def in_place_of_the_array(value: object) -> bytes:
    return pickle.dumps({"header": b"{}", "array": value}, protocol=5)


def raw(code: bytes) -> bytes:
    return b"\x80\x05" + code + b"."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


SET_CANARY = f"__import__('os').environ.__setitem__('{CANARY}', 'ran')"
SHELL = f"echo ran > {CANARY}"
RECONSTRUCTION = text("awkward._pickle") + text("unpickle_array_schema_2") + b"\x93"
PAIR = text("header") + b"C\x02{}" + text("array")


def calls() -> dict[str, bytes]:
    """Return pickles that would run code, in place of the array."""
    functions = {
        "os.system": Call(os.system, SHELL),
        "eval": Call(eval, SET_CANARY),
        "exec": Call(exec, SET_CANARY),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", CANARY]),
        "os.mkdir": Call(os.mkdir, CANARY),
        "io.open": Call(io.open, CANARY, "w"),
        "numpy.load": Call(np.load, "x.npy", None, True),
        "awkward.from_parquet": Call(ak.from_parquet, "https://127.0.0.1:9/x"),
        "awkward.from_buffers": Call(ak.from_buffers, {"class": "EmptyArray"}, 0, {}),
        "functools.partial": Call(functools.partial, os.mkdir, CANARY),
        "import_module": Call(importlib.import_module, "antigravity"),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.mkdir, CANARY))),
        "numpy dtype object": np.array([Call(os.mkdir, CANARY)], dtype=object),
        "nested in the header": {"x": [({"y": Call(os.mkdir, CANARY)},)]},
    }
    return {name: in_place_of_the_array(value) for name, value in functions.items()}


def forms() -> dict[str, bytes]:
    """Return a pickle for each way in which an opcode can name, call or build an object."""
    argument = text(SHELL) + b"\x85"
    system = text("os") + text("system") + b"\x93"
    return {
        "GLOBAL": raw(b"cos\nsystem\n" + argument + b"R"),
        "STACK_GLOBAL": raw(system + argument + b"R"),
        "INST": raw(b"(" + text(SHELL) + b"ios\nsystem\n"),
        "OBJ": raw(b"(" + system + text(SHELL) + b"o"),
        "NEWOBJ": raw(system + argument + b"\x81"),
        "NEWOBJ_EX": raw(system + argument + b"}\x92"),
        "protocol 0": pickle.dumps({"header": b"{}", "array": Call(os.system, SHELL)}, protocol=0),
        "EXT1": raw(b"\x82\xf0" + argument + b"R"),
        "EXT2": raw(b"\x83\xf0\x00" + argument + b"R"),
        "EXT4": raw(b"\x84\xf0\x00\x00\x00" + argument + b"R"),
        "PERSID": raw(b"Pid\n"),
        "BINPERSID": raw(text("id") + b"Q"),
        "BUILD of the admitted object": raw(
            b"}(" + PAIR + RECONSTRUCTION + b"(}K\x00}" + text("<") + b"NNtR}" + text("form") + b"Ksb" + b"u"
        ),
        "BUILD of the admitted global": raw(RECONSTRUCTION + b"}" + text("__init__") + system + b"sb"),
        "dotted name": raw(text("awkward._pickle") + text("unpickle_array_schema_2.__globals__") + b"\x93"),
        "dotted module": raw(text("awkward") + text("_pickle.unpickle_array_schema_2") + b"\x93"),
        "another function of the admitted module": raw(
            text("awkward._pickle") + text("unpickle_array_schema_1") + b"\x93"
        ),
        "out-of-band buffer": raw(b"\x97"),
        "hidden behind a frame that ends in a text": raw(
            # pickletools reads one string of 64 bytes; pickle drops two bytes with the frame, and reads opcodes
            b"\x95" + struct.pack("<Q", 3) + b"X" + struct.pack("<I", 64) + b"\0\0\0\0cos\nmkdir\n".ljust(64)
        ),
    }


@pytest.fixture(autouse=True)
def _no_code_has_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check after each test that no message has written a file, set a variable or imported a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CANARY, raising=False)
    yield
    assert not list(tmp_path.iterdir())
    assert CANARY not in os.environ
    assert "antigravity" not in sys.modules


def test_these_tests_detect_a_pickle_that_runs_code(tmp_path: Path) -> None:
    pickle.loads(calls()["os.system"])
    assert (tmp_path / CANARY).read_text() == "ran\n"
    (tmp_path / CANARY).unlink()


@pytest.mark.parametrize("name", calls())
def test_a_pickle_that_calls_a_function_is_rejected_and_not_run(name: str) -> None:
    with pytest.raises(MessageError, match=r"the pickle .*, which is not allowed in a message"):
        array_pickle.loads(calls()[name])


@pytest.mark.parametrize("name", forms())
def test_every_way_to_name_call_or_build_an_object_is_rejected(name: str) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    opcode = {opcode.name for opcode in pickletools.opcodes} & {name.split()[0]} - {"STACK_GLOBAL"}
    expected = (
        f"the opcode {opcode.pop()} at byte" if opcode else "which is not allowed in a message|ends within an opcode"
    )
    try:
        with pytest.raises(MessageError, match=expected):
            array_pickle.loads(forms()[name])
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg.clear_extension_cache()


def test_an_opcode_that_a_frame_hides_from_the_scan_is_rejected_before_it_is_read() -> None:
    # pickletools reads one string in this body; pickle drops two bytes and reads a memo index of about 2³¹.
    huge_memo = b"\0\0\0\0" + b"0]r\x7f\x7f\x7f\x7f."
    frame = b"\x95" + struct.pack("<Q", 3)
    body = b"\x80\x05" + frame + b"X" + struct.pack("<I", len(huge_memo)) + huge_memo + b"."
    assert [opcode.name for opcode, _, _ in pickletools.genops(body)] == ["PROTO", "FRAME", "BINUNICODE", "STOP"]
    with pytest.raises(MessageError, match="a frame of the pickle ends within an opcode"):
        array_pickle.loads(body)


@pytest.mark.parametrize(
    "code",
    [
        b")R",  # no arguments
        b"(NNNNNNNtR",  # too many
        b"NR",  # no tuple
        b"(NNNNNNt\x94Rh\x00h\x00\x86\x30",
    ],
)
def test_the_admitted_function_with_wrong_arguments_is_rejected(code: bytes) -> None:
    with pytest.raises(MessageError):
        array_pickle.loads(raw(b"}(" + PAIR + RECONSTRUCTION + code + b"u"))


def test_two_arrays_in_a_message_are_rejected() -> None:
    with pytest.raises(MessageError):
        array_pickle.loads(pickle.dumps({"header": b"{}", "array": array(), "more": array()}, protocol=5))
    with pytest.raises(MessageError):
        array_pickle.loads(in_place_of_the_array([array(), array()]))
    with pytest.raises(MessageError, match="does not consist of a header and an awkward array"):
        array_pickle.loads(pickle.dumps({"header": array(), "array": {}}, protocol=5))


@pytest.mark.parametrize(
    "body",
    [b"", b".", b"not a pickle", b"\x80\x05N.", valid()[:-1], valid()[:100], pickle.dumps(array(), protocol=5)],
    ids=["empty", "stop", "text", "none", "cut", "cut early", "an array alone"],
)
def test_a_body_that_is_not_a_header_and_an_array_is_rejected(body: bytes) -> None:
    with pytest.raises(MessageError):
        array_pickle.loads(body)


# --- pickles that would use much memory -----------------------------------------------------

HUGE = 2**40


def doubled(levels: int, start: bytes, join: Callable[[bytes], bytes]) -> bytes:
    """Return a list of values in the memo, each of which contains the one before twice."""
    code = b"]\x94(" + start + b"\x94"
    for index in range(1, levels + 1):
        code += join(b"h" + bytes([index])) + b"\x94"
    return code + b"e"


def bombs() -> dict[str, bytes]:
    """Return small bodies that need much memory or time, in place of the array or of one of its parts."""

    def lists(get: bytes) -> bytes:
        return b"](" + get + get + b"e"

    def tuples(get: bytes) -> bytes:
        return get + get + b"\x86"

    big_text = text("x" * 4_000_000) + b"\x94"
    tuple_key = doubled(60, b"N", tuples) + b"0" + b"}" + b"h\x3dNs"
    call = RECONSTRUCTION + b"(}(" + text("class") + b"%suK\x00}" + text("<") + b"NNtR"
    return {
        "nested lists": raw(b"}(" + PAIR + doubled(60, b"N", lists) + b"u"),
        "nested lists as the form's class": raw(b"}(" + PAIR + call.replace(b"%s", doubled(60, b"N", lists)) + b"u"),
        "nested tuples as a key": raw(b"}(" + PAIR + tuple_key + b"u"),
        "a list that holds itself": raw(b"}(" + PAIR + b"]\x94h\x00a" + b"u"),
        "one text a thousand times as the form's class": raw(
            b"}(" + PAIR + call.replace(b"%s", b"](" + big_text + b"h\x00" * 1000 + b"e") + b"u"
        ),
        "huge memo index": raw(b"}r\xff\xff\xff\xff"),
        "huge memo index in text": raw(b"}p99999999999\n"),
        "BINBYTES8": raw(b"\x8e" + struct.pack("<Q", HUGE)),
        "BYTEARRAY8": raw(b"\x96" + struct.pack("<Q", HUGE)),
        "BINUNICODE8": raw(b"\x8d" + struct.pack("<Q", HUGE)),
        "BINBYTES": raw(b"B" + struct.pack("<I", 2**32 - 1)),
        "BINUNICODE": raw(b"X" + struct.pack("<I", 2**32 - 1)),
        "LONG4": raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        "negative LONG4": raw(b"\x8b" + struct.pack("<i", -1)),
        "FRAME": b"\x80\x05\x95" + struct.pack("<Q", HUGE) + b"N.",
        "FRAME of all of the address space": b"\x80\x05\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
        "a hundred thousand opcodes": raw(b"N0" * 50_000 + b"N"),
        "deep nesting": raw(b"]" * 1_500 + b"a" * 400),
        "a long number in text": raw(b"I" + b"9" * 1_000_000 + b"\n"),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_body_that_would_use_much_memory_is_rejected_within_little(name: str) -> None:
    body = bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(MessageError) as rejected:
            read(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body) + 2_000_000
    assert len(str(rejected.value)) < 2000, "the reason is sent in a message header"


# --- arrays that differ from their declaration -------------------------------------------


def parts_of(body: bytes) -> dict[str, Any]:
    """Return the arguments of awkward's reconstruction function by their names."""
    kept: list[tuple[Any, ...]] = []

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return lambda *arguments: kept.append(arguments)

    Reader(io.BytesIO(body)).load()
    return dict(zip(("form", "length", "container", "byteorder", "behavior", "attrs"), kept[0], strict=True))


def with_parts(parts: dict[str, Any]) -> bytes:
    reconstruct = array().__reduce_ex__(5)[0]
    return in_place_of_the_array(Call(reconstruct, *parts.values()))


def test_the_unchanged_arguments_give_the_array_again() -> None:
    assert ak.array_equal(read(with_parts(parts_of(valid()))), array(), dtype_exact=True)


def _in_pt(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts["form"]["contents"][0]["content"].__setitem__(name, value)


def _in_form(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts["form"].__setitem__(name, value)


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts.__setitem__(name, value)


def _offsets_out_of_range(parts: dict[str, Any]) -> None:
    regular = parts["form"]["contents"][0]
    parts["form"]["contents"][0] = regular | {"class": "ListOffsetArray", "offsets": "i64"}
    parts["container"]["node1-offsets"] = np.array([0, 10**12, 10**15, 10**18]).tobytes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_in_form("fields", ["pt"]), r"fields \['pt'\]; declared are \['pt', 'charge'\]"),
        (_in_form("fields", ["charge", "pt"]), "fields"),
        (_in_form("fields", None), "fields None"),
        (_in_form("contents", []), "invalid"),
        (_in_form("parameters", {"__record__": "Muon"}), "not plain records"),
        (_in_form("class", "UnionArray"), "'UnionArray', not plain records"),
        (_in_pt("primitive", "float64"), "field 'pt' .* not a plain float32"),
        (_in_pt("parameters", {"__array__": "char"}), "field 'pt'"),
        (_in_pt("inner_shape", [2]), "field 'pt'"),
        (_in_pt("class", "BitMaskedArray"), "field 'pt'"),
        (_in_pt("form_key", "node99"), "invalid: KeyError"),
        (_in_pt("form_key", ["node2"]), "invalid: TypeError"),
        (_offsets_out_of_range, "field 'pt' does not have 2 values an event"),
        (lambda parts: parts["form"]["contents"][0].__setitem__("size", 4), "field 'pt' does not have 2 values"),
        (lambda parts: parts["container"].__setitem__("node2-data", b"12"), "field 'pt' has 2 bytes for 3 events"),
        (lambda parts: parts["container"].__setitem__("node2-data", bytes(25)), "has 25 bytes for 3 events"),
        (lambda parts: parts["container"].__setitem__("node2-data", "x" * 24), "invalid: TypeError"),
        (lambda parts: parts["container"].__setitem__("more", b""), "3 buffers for 2 fields"),
        (_set("container", []), "invalid"),
        (_set("length", 4), "for 4 events"),
        (_set("length", 2), "for 2 events"),
        (_set("length", 2**63), "for 9223372036854775808 events"),
        (_set("length", -1), "length is -1"),
        (_set("length", True), "length is True"),
        (_set("length", 3.0), "length is 3.0"),
        (_set("byteorder", ">"), "little-endian"),
        (_set("behavior", {"Muon": 1}), "has a behavior"),
        (_set("attrs", {"@x": 1}), "or attributes"),
        (_set("form", "RecordArray"), "invalid"),
    ],
)
def test_an_array_that_differs_from_its_declaration_is_rejected(
    change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    parts = parts_of(valid())
    change(parts)
    unpickled = array_pickle.loads(with_parts(parts))
    with pytest.raises(MessageError, match=expected):
        unpickled.array(SCHEMA)


def test_a_length_whose_bytes_overflow_64_bits_is_rejected() -> None:
    parts = parts_of(array_pickle.dumps({}, ak.Array({"pt": np.empty((0, 4), np.float32)})))
    parts["length"] = 2**62  # times four values is 2⁶⁴, which is 0 in 64-bit arithmetic
    with pytest.raises(MessageError, match="has 0 bytes for 4611686018427387904 events"):
        array_pickle.loads(with_parts(parts)).array({"pt": Column("float32", 4)})


# --- random and mutated messages --------------------------------------------------------------

CUTFLOW = {"read": 10, "four_leptons": 3, "pt_cuts": 2}


def events_body() -> bytes:
    floats, bytes_ = np.full((2, 4), 1.5, np.float32), np.ones((2, 4), np.int8)
    columns = dict.fromkeys(("lep_pt", "lep_eta", "lep_phi", "lep_energy"), floats)
    columns |= {"lep_charge": bytes_, "lep_type": bytes_, "weight": np.ones(2, np.float32)}
    return Events(Chunk("run-1", "Zee", 0, 10), ANALYSES.resolve(RunSettings()), CUTFLOW, ak.Array(columns)).encode()


BODY = events_body()
OPCODE_STARTS = [position for _, _, position in pickletools.genops(BODY)]
UNFRAMED = BODY[:2] + BODY[11:]
TYPE = str(messages.decode("events", BODY, ANALYSES).events.type.content)


def assert_rejected_or_valid(body: bytes) -> None:
    try:
        message = messages.decode("events", body, ANALYSES)
    except MessageError:
        return
    assert isinstance(message, Events)
    assert str(message.events.type.content) == TYPE
    assert len(message.events.lep_pt.to_list()) == len(message.events)


def mutated(seed: int) -> bytes:
    """Return a valid body with a few bytes or opcodes replaced, removed, inserted or copied."""
    rng = random.Random(seed)
    body = bytearray(rng.choice((BODY, UNFRAMED)))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice((rng.randrange(len(body) + 1), min(rng.choice(OPCODE_STARTS), len(body))))
        match rng.randrange(6):
            case 0:
                body[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del body[at : at + rng.choice((1, 2, 9, 50))]
            case 2:
                body[at:at] = rng.randbytes(rng.choice((1, 2, 9)))
            case 3:
                start = rng.choice(OPCODE_STARTS)
                body[at:at] = BODY[start : start + rng.choice((2, 20, 100))]
            case 4:
                body[at:at] = b"\x95" + struct.pack("<Q", rng.choice((0, 1, 3, 50, HUGE)))
            case 5 if at > 1:
                del body[at:]
    return bytes(body)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x05", b"\x80\x05}", BODY[:500], RECONSTRUCTION]))
def test_random_bytes_are_rejected_with_a_message_error(tail: bytes, start: bytes) -> None:
    assert_rejected_or_valid(start + tail)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.integers(0, 2**64))
def test_a_mutated_message_is_rejected_or_still_valid(seed: int) -> None:
    assert_rejected_or_valid(mutated(seed))
