"""Call the functions of an analysis, and check what they return.

A mistake in a user's own analysis is raised as an AnalysisError, which names the function, its file and line,
and what is expected. Flat awkward arrays are converted to numpy.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, ParamSpec, TypeGuard, TypeVar

import awkward as ak
import numpy as np

from common.analyses import Analysis, Array, Columns, Mask, Observable, Sample, Step
from common.errors import AnalysisError, PipelineError
from common.settings import RunSettings

P = ParamSpec("P")
T = TypeVar("T")


def columns(analysis: Analysis, arrays: ak.Array, sample: Sample, lumi_ifb: float) -> Columns:
    """Return the columns of a chunk, each of shape (n,) or (n, k) for the same n.

    Raises AnalysisError for a column that is absent, has another length, or is not of the declared type.
    """
    what, function = "columns", analysis.columns
    returned = _called(what, function, arrays.fields, arrays, sample, lumi_ifb)
    if not isinstance(returned, Mapping):
        raise _mistake(what, function, f"returned {_kind(returned)}; it must return a dictionary of arrays")
    found = {name: _as_numpy(values) for name, values in returned.items()}
    missing = [name for name in analysis.events if name not in found]
    if missing:
        names = ", ".join(found) or "nothing"
        raise _mistake(
            what, function, f"returned no column {', '.join(missing)}, which events declares; it returned {names}"
        )
    events = len(found["weight"])
    for name, values in found.items():
        if not _is_array(values) or len(values) != events:
            expected = f"an array of {events} events, as the weight is"
            raise _mistake(what, function, f"returned {_kind(values)} as {name!r}; it must be {expected}")
    for name, column in analysis.events.items():
        values, dtype, shape = found[name], np.dtype(column.dtype), column.shape(events)
        if values.dtype != dtype or values.shape != shape:
            declared = f"events declares {dtype} of shape {shape}"
            raise _mistake(what, function, f"returned {_kind(values)} as {name!r}; {declared}")
    return found


def objects(analysis: Analysis, found: Columns) -> Any:
    """Return the objects of columns."""
    return _called("objects", analysis.objects, found, found)


def passes(step: Step, found: Any, settings: RunSettings, given: Columns) -> Mask:
    """Return which events pass a step, shape (events,); ``given`` are the columns of the objects ``found``.

    Raises AnalysisError unless it is a mask of that shape.
    """
    what, events = f"step {step.name!r}", len(given["weight"])
    mask = _as_numpy(_called(what, step.passes, given, found, settings))
    if not _is_array(mask) or mask.shape != (events,) or mask.dtype != np.bool_:
        expected = f"an array of truth values of shape ({events},), one an event"
        raise _mistake(what, step.passes, f"returned {_kind(mask)}; it must return {expected}")
    return mask


def values(observable: Observable, found: Any, given: Columns) -> Array:
    """Return the values of an observable in its declared type, shape (events,).

    A value that is out of a float type's range becomes infinite. Raises AnalysisError for another shape, for a value
    that an integer type does not have, and, unless the observable allows it, for one that is not finite.
    """
    what, function, events = f"observable {observable.name!r}", observable.values, len(given["weight"])
    returned = _as_numpy(_called(what, function, given, found))
    if not _is_array(returned) or returned.shape != (events,) or returned.dtype.kind not in "fiu":
        expected = f"an array of numbers of shape ({events},)"
        raise _mistake(what, function, f"returned {_kind(returned)}; it must return {expected}")
    if not observable.allow_nan and not np.isfinite(returned).all():
        bad = returned[~np.isfinite(returned)]
        raise _mistake(
            what,
            function,
            f"is {bad[0]} in {len(bad)} of {events} events; every value must be finite, "
            "or the observable have allow_nan=True, which leaves such events out of the histogram",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = returned.astype(observable.dtype, copy=False)
    if converted.dtype.kind in "iub" and (changed := returned[converted != returned]).size:
        raise _mistake(
            what,
            function,
            f"is {changed[0]} in {len(changed)} of {events} events, which {converted.dtype} does not have; "
            "give the observable another dtype",
        )
    return converted


def channels(analysis: Analysis, found: Any, given: Columns) -> Array:
    """Return the index of each event's channel, shape (events,); raises AnalysisError for one that does not exist."""
    what, function, events = "channel", analysis.channel, len(given["weight"])
    returned = _as_numpy(_called(what, function, given, found))
    if not _is_array(returned) or returned.shape != (events,) or returned.dtype.kind not in "iu":
        expected = f"an array of integers of shape ({events},)"
        raise _mistake(what, function, f"returned {_kind(returned)}; it must return {expected}")
    last = len(analysis.channels) - 1
    if events and not (returned.min() >= 0 and returned.max() <= last):
        raise _mistake(
            what,
            function,
            f"returned a value outside 0 to {last} for an event that passes all steps; it must be the index of one of "
            "the channels",
        )
    return returned.astype(np.int8, copy=False)


def weights(analysis: Analysis, given: Columns) -> Array:
    """Return the weight of each selected event; raises AnalysisError unless all are finite."""
    found = given["weight"]
    if not np.isfinite(found).all():
        bad = found[~np.isfinite(found)]
        raise _mistake(
            "columns",
            analysis.columns,
            f"gave the weight {bad[0]} to {len(bad)} of {len(found)} selected events; every weight must be finite",
        )
    return found


def _called(what: str, function: Callable[P, T], names: Iterable[str], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function; an exception of it is raised as an AnalysisError. ``names`` are the columns that it may use."""
    try:
        return function(*args, **kwargs)
    except (PipelineError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        text = (str(error).strip().splitlines() or [""])[0]
        hint = f"; the columns are {', '.join(names)}" if isinstance(error, LookupError | AttributeError) else ""
        raise AnalysisError(f"{_line(error, function)}: {what} raised {type(error).__name__}: {text}{hint}") from error


def _line(error: BaseException, function: Callable[..., Any]) -> str:
    """Return where an exception was raised: the last line in the file of the function, or its first one."""
    code = _code(function)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if code is not None and frame.filename == code.co_filename]
    return _place(function, lines[-1] if lines else None)


def _mistake(what: str, function: Callable[..., Any], problem: str) -> AnalysisError:
    return AnalysisError(f"{_place(function)}: {what} {problem}")


def _place(function: Callable[..., Any], line: int | None = None) -> str:
    """Return the file of a function and the line, by default its first one.

    The file has its name only: each service may have it in another directory.
    """
    code = _code(function)
    return repr(function) if code is None else f"{Path(code.co_filename).name}:{line or code.co_firstlineno}"


def _code(function: Callable[..., Any]) -> CodeType | None:
    """Return the code of a function, a ``functools.partial`` or a callable object; None if it is not in Python."""
    function = inspect.unwrap(getattr(function, "func", function))
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)


def _as_numpy(value: Any) -> Any:
    """Convert an awkward array that is flat; return anything else as it is."""
    if not isinstance(value, ak.Array):
        return value
    try:
        return ak.to_numpy(value)
    except ValueError:  # lists of different lengths
        return value


def _is_array(value: Any) -> TypeGuard[Array]:
    """Whether a value is an array of numpy without missing values."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        masked = "masked " if isinstance(value, np.ma.MaskedArray) else ""
        return f"a {masked}array of {value.dtype} of shape {value.shape}".replace("a array", "an array")
    if isinstance(value, ak.Array):
        return f"an awkward array of type {value.type}"
    return f"{type(value).__name__} ({value!r:.60})"
