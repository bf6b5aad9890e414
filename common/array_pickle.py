"""Write and read pickled awkward arrays, without running code that a pickle contains.

``pickle.loads`` calls any function that a pickle names. ``loads`` of this module calls none:

1. It scans the opcodes before unpickling. Only the opcodes of plain values
   and of one awkward array are admitted; extension codes, persistent ids, object
   building and large memo indices are rejected. Only strings and bytes may be used
   more than once, so that the content cannot grow beyond the size of the message.
2. The only global that a pickle may name is awkward's own reconstruction function.
   It is not called either: its arguments are kept.
3. The arguments must describe exactly the declared fields, types and lengths, with
   buffers of exactly the right size. Only then is the array built from the buffers.

``dumps`` writes an ordinary pickle of ``{"header": JSON as bytes, "array": ak.Array}``. The header is JSON because
each value of a pickle takes a microsecond to scan; its reader checks it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from common import lazy_numpy as np
from common.errors import MessageError
from common.schema import Schema

if TYPE_CHECKING:
    import awkward as ak
    import numpy.typing as npt

_RECONSTRUCTION = ("awkward._pickle", "unpickle_array_schema_2")

#: Opcodes whose value the memo may give back. A container that is used twice could contain itself, or double in size
#: at every level.
_LEAF_OPCODES = frozenset({
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINGET", "LONG_BINGET",
})  # fmt: skip
_ADMITTED_OPCODES = _LEAF_OPCODES | {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "STACK_GLOBAL", "REDUCE",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
}  # fmt: skip
_MAX_OPCODES = 2_000

_short = reprlib.Repr()
_short.maxlist, _short.maxstring, _short.maxother = 20, 60, 60


def dumps(header: object, array: ak.Array) -> bytes:
    """Pickle a header, which msgspec can write as JSON, and an awkward array of records."""
    return pickle.dumps({"header": msgspec.json.encode(header), "array": array}, protocol=5)


@dataclass(frozen=True, repr=False)
class _ArrayParts:
    """The arguments of awkward's reconstruction function."""

    form: Any
    length: Any
    container: Any
    byteorder: Any
    behavior: Any
    attrs: Any


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_ArrayParts]:
        if (module, name) != _RECONSTRUCTION:
            raise MessageError(f"the pickle names {module[:60]}.{name[:60]}, which is not allowed in a message")
        return _ArrayParts


@dataclass(frozen=True)
class Unpickled:
    """A header in JSON, and an array that is not yet checked against its declaration."""

    header: bytes
    _parts: _ArrayParts

    def array(self, schema: Schema) -> ak.Array:
        """Check and build the array; raises MessageError unless it has exactly the fields of ``schema``."""
        # Here, because awkward takes 0.2 s, and a program that follows a run gets no arrays.
        from common.columns import records

        try:
            return records(_columns(self._parts, schema))
        except MessageError:
            raise
        except Exception as error:
            raise MessageError(f"the description of the array is invalid: {_brief(error)}") from None


def loads(body: bytes) -> Unpickled:
    """Read the bytes that ``dumps`` writes; raises MessageError, and no other error, for any other bytes."""
    try:
        _scan(body)
        content = _Unpickler(io.BytesIO(body)).load()
    except MessageError:
        raise
    except Exception as error:
        raise MessageError(f"not a pickled array: {_brief(error)}") from None
    if not isinstance(content, dict) or set(content) != {"header", "array"}:
        raise MessageError("the pickle does not consist of a header and an array")
    header, parts = content["header"], content["array"]
    if not isinstance(header, bytes) or not isinstance(parts, _ArrayParts):
        raise MessageError("the pickle does not consist of a header and an awkward array")
    return Unpickled(header, parts)


def _scan(body: bytes) -> None:
    memo: list[bool] = []  # for each value in the memo, whether it is a leaf
    leaf_on_top = False
    previous = frame_end = 0
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int]] = pickletools.genops(body)  # type: ignore[assignment]
    for count, (opcode, argument, position) in enumerate(opcodes):
        name = opcode.name
        if name not in _ADMITTED_OPCODES:
            raise MessageError(
                f"the pickle has the opcode {name} at byte {position}, which is not allowed in a message"
            )
        if count > _MAX_OPCODES:
            raise MessageError(f"the pickle has more than {_MAX_OPCODES} opcodes")
        # If a frame ends within an opcode, Unpickler skips bytes and then reads other opcodes than pickletools does.
        if previous < frame_end < position or (name == "FRAME" and position < frame_end):
            raise MessageError(f"a frame of the pickle ends within an opcode at byte {position}")
        previous = position
        if name == "FRAME":
            frame_end = position + 9 + argument
        elif name == "MEMOIZE":
            memo.append(leaf_on_top)
        elif name in ("BINGET", "LONG_BINGET") and not (argument < len(memo) and memo[argument]):
            raise MessageError(
                f"the pickle refers to a container again at byte {position}, which is not allowed in a message"
            )
        else:
            leaf_on_top = name in _LEAF_OPCODES


def _columns(parts: _ArrayParts, schema: Schema) -> dict[str, npt.NDArray[Any]]:
    form, length = parts.form, parts.length
    if parts.byteorder != "<" or parts.behavior is not None or parts.attrs not in (None, {}):
        raise MessageError("the array is not little-endian, or has a behavior or attributes")
    if type(length) is not int or length < 0:
        raise MessageError(f"the array's length is {_short.repr(length)}")
    if form["class"] != "RecordArray" or form["parameters"]:
        raise MessageError(f"the array is a {_short.repr(form['class'])}, not plain records")
    if form["fields"] != list(schema):
        raise MessageError(f"the array has the fields {_short.repr(form['fields'])}; declared are {list(schema)}")
    columns = {}
    for (name, column), content in zip(schema.items(), form["contents"], strict=True):
        values = content
        if column.size is not None:
            if content["class"] != "RegularArray" or content["parameters"] or content["size"] != column.size:
                raise MessageError(f"field {name!r} does not have {column.size} values an event")
            values = content["content"]
        dtype = np.dtype(column.dtype)
        described = tuple(values.get(part) for part in ("class", "primitive", "inner_shape", "parameters"))
        if described != ("NumpyArray", dtype.name, [], {}):
            raise MessageError(f"field {name!r} is {_short.repr(described)}, not a plain {dtype.name}")
        buffer = parts.container[values["form_key"] + "-data"]
        shape = column.shape(length)
        if len(buffer) != math.prod(shape) * dtype.itemsize:
            raise MessageError(f"field {name!r} has {len(buffer)} bytes for {_short.repr(length)} events")
        columns[name] = np.frombuffer(buffer, dtype).reshape(shape)
        column.check(name, columns[name])
    if len(parts.container) != len(columns):
        raise MessageError(f"the array has {len(parts.container)} buffers for {len(columns)} fields")
    return columns


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
