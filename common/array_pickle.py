"""Pickled awkward arrays that can be read back without opening a door.

``pickle.loads`` runs whatever a pickle says. ``loads`` here runs nothing of it:

1. The opcodes are scanned first. Only those that a header of plain values and
   one awkward array need are let through, so that neither extension codes,
   persistent ids, object building nor a huge memo index get any further. Only
   texts and bytes may occur twice, so that nothing grows beyond the message.
2. The only global a pickle may name is awkward's own reconstruction, and even
   that is not called: its arguments are kept.
3. The kept arguments must describe exactly the declared fields, types and
   lengths, with buffers of exactly the right size. Then the array is built.

What ``dumps`` writes is an ordinary pickle of ``{"header": …, "array": ak.Array}``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from common.errors import MessageError

_RECONSTRUCTION = ("awkward._pickle", "unpickle_array_schema_2")

_ADMITTED_OPCODES = frozenset(
    {
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "MEMOIZE",
        "BINGET",
        "LONG_BINGET",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "SHORT_BINBYTES",
        "BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "STACK_GLOBAL",
        "REDUCE",
    }
)
# What a memo may give back. A container given back twice could hold itself, or double at every level.
_LEAF_OPCODES = frozenset(
    {
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "SHORT_BINBYTES",
        "BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "BINGET",
        "LONG_BINGET",
    }
)
_MAX_OPCODES = 2_000

_shown = reprlib.Repr()
_shown.maxlist, _shown.maxstring, _shown.maxother = 20, 60, 60


@dataclass(frozen=True)
class Column:
    """One declared field: its dtype, how many values an event has where that is not one, and which values are legal.

    Floats may be restricted to numbers (``allow_nan``) and finite numbers
    (``allow_infinite``), integers to the range from 0 up to, not including, ``below``.
    """

    dtype: npt.DTypeLike
    size: int | None = None
    allow_nan: bool = True
    allow_infinite: bool = True
    below: int | None = None

    def check(self, name: str, values: npt.NDArray[Any]) -> None:
        """Raise MessageError, naming the field, where one of ``values`` is not legal."""
        if self.below is not None and len(values) and not (values.min() >= 0 and values.max() < self.below):
            raise MessageError(f"field {name!r} has a value outside 0 to {self.below - 1}")
        if not self.allow_nan and np.isnan(values).any():
            raise MessageError(f"field {name!r} has a value that is not a number")
        if not self.allow_infinite and np.isinf(values).any():
            raise MessageError(f"field {name!r} has an infinite value")

    def shape(self, length: int) -> tuple[int, ...]:
        """Shape of the field's values for ``length`` events."""
        return (length,) if self.size is None else (length, self.size)


Schema = Mapping[str, Column]


def dumps(header: Mapping[str, Any], array: ak.Array) -> bytes:
    """Pickle a header of plain values and an awkward array of records."""
    return pickle.dumps({"header": dict(header), "array": array}, protocol=5)


@dataclass(frozen=True, repr=False)
class _ArrayParts:
    """What awkward's reconstruction would have been called with."""

    form: Any
    length: Any
    container: Any
    byteorder: Any
    behavior: Any
    attrs: Any


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_ArrayParts]:
        if (module, name) != _RECONSTRUCTION:
            raise MessageError(f"the pickle names {module[:60]}.{name[:60]}, which no message may")
        return _ArrayParts


@dataclass(frozen=True)
class Unpickled:
    """A header and an array that has not been checked against its declaration yet."""

    header: dict[str, Any]
    _parts: _ArrayParts

    def array(self, schema: Schema) -> ak.Array:
        """Build the array; raises MessageError unless it holds exactly the fields of ``schema``."""
        try:
            return ak.Array(_columns(self._parts, schema))
        except MessageError:
            raise
        except Exception as error:
            raise MessageError(f"the array's description is broken: {_brief(error)}") from None


def loads(body: bytes) -> Unpickled:
    """Read what ``dumps`` wrote; raises MessageError, and nothing else, for anything else."""
    try:
        _scan(body)
        content = _Unpickler(io.BytesIO(body)).load()
    except MessageError:
        raise
    except Exception as error:
        raise MessageError(f"not a pickled array: {_brief(error)}") from None
    if not isinstance(content, dict) or set(content) != {"header", "array"}:
        raise MessageError("the pickle does not hold a header and an array")
    header, parts = content["header"], content["array"]
    if not isinstance(header, dict) or not isinstance(parts, _ArrayParts):
        raise MessageError("the pickle does not hold a header and an awkward array")
    return Unpickled(header, parts)


def _scan(body: bytes) -> None:
    memo: list[bool] = []  # for each memorised value, whether it is a leaf
    leaf_on_top = False
    previous = frame_end = 0
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int]] = pickletools.genops(body)  # type: ignore[assignment]
    for count, (opcode, argument, position) in enumerate(opcodes):
        name = opcode.name
        if name not in _ADMITTED_OPCODES:
            raise MessageError(f"the pickle holds the opcode {name} at byte {position}, which no message may")
        if count > _MAX_OPCODES:
            raise MessageError(f"the pickle has more than {_MAX_OPCODES} opcodes")
        # Where a frame ends within an opcode, Unpickler skips bytes, and then reads other opcodes than these.
        if previous < frame_end < position or (name == "FRAME" and position < frame_end):
            raise MessageError(f"the pickle's frames do not hold whole opcodes at byte {position}")
        previous = position
        if name == "FRAME":
            frame_end = position + 9 + argument
        elif name == "MEMOIZE":
            memo.append(leaf_on_top)
        elif name in ("BINGET", "LONG_BINGET") and not (argument < len(memo) and memo[argument]):
            raise MessageError(f"the pickle refers back to a container at byte {position}, which no message may")
        else:
            leaf_on_top = name in _LEAF_OPCODES


def _columns(parts: _ArrayParts, schema: Schema) -> dict[str, npt.NDArray[Any]]:
    form, length = parts.form, parts.length
    if parts.byteorder != "<" or parts.behavior is not None or parts.attrs not in (None, {}):
        raise MessageError("the array is not a plain little-endian one")
    if type(length) is not int or length < 0:
        raise MessageError(f"the array's length is {_shown.repr(length)}")
    if form["class"] != "RecordArray" or form["parameters"]:
        raise MessageError(f"the array is a {_shown.repr(form['class'])}, not plain records")
    if form["fields"] != list(schema):
        raise MessageError(f"the array has the fields {_shown.repr(form['fields'])}; declared are {list(schema)}")
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
            raise MessageError(f"field {name!r} is {_shown.repr(described)}, not a plain {dtype.name}")
        buffer = parts.container[values["form_key"] + "-data"]
        shape = column.shape(length)
        if len(buffer) != math.prod(shape) * dtype.itemsize:
            raise MessageError(f"field {name!r} has {len(buffer)} bytes for {_shown.repr(length)} events")
        columns[name] = np.frombuffer(buffer, dtype).reshape(shape)
        column.check(name, columns[name])
    if len(parts.container) != len(columns):
        raise MessageError(f"the array has {len(parts.container)} buffers for {len(columns)} fields")
    return columns


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
