"""Call the functions of an analysis, and check what they return.

A mistake in a user's own analysis is raised as an AnalysisError, which names the function, its file and line,
and what is expected.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

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
    function = analysis.columns
    found = _called("columns", function, arrays.fields, arrays, sample, lumi_ifb)
    if not isinstance(found, Mapping):
        raise _mistake("columns", function, f"returned {_kind(found)}; it must return a dictionary of arrays")
    missing = [name for name in analysis.events if name not in found]
    if missing:
        raise _mistake(
            "columns", function, f"returned no column {', '.join(missing)}, which events declares; it returned "
            f"{', '.join(found) or 'nothing'}"
        )  # fmt: skip
    length = len(found["weight"])
    for name, values in found.items():
        if not isinstance(values, np.ndarray) or len(values) != length:
            raise _mistake(
                "columns", function, f"returned {_kind(values)} as {name!r}; it must be an array of {length} events, "
                "as the weight is"
            )  # fmt: skip
    for name, column in analysis.events.items():
        values = found[name]
        if values.dtype != np.dtype(column.dtype) or values.shape != column.shape(length):
            expected = f"{np.dtype(column.dtype)} of shape {column.shape(length)}"
            raise _mistake(
                "columns", function, f"returned {_kind(values)} as {name!r}; events declares {expected}"
            )  # fmt: skip
    return found


def objects(analysis: Analysis, found: Columns) -> Any:
    """Return the objects of columns."""
    return _called("objects", analysis.objects, found, found)


def passes(step: Step, found: Any, settings: RunSettings, given: Columns) -> Mask:
    """Return which events pass a step, shape (events,); ``given`` are the columns of the objects ``found``.

    Raises AnalysisError unless it is a mask of that shape.
    """
    mask = _called(f"step {step.name!r}", step.passes, given, found, settings)
    events = len(given["weight"])
    if not isinstance(mask, np.ndarray) or mask.shape != (events,) or mask.dtype != np.bool_:
        raise _mistake(
            f"step {step.name!r}",
            step.passes,
            f"returned {_kind(mask)}; it must return an array of truth values of shape ({events},), one an event",
        )
    return mask


def values(observable: Observable, found: Any, given: Columns) -> Array:
    """Return the values of an observable in its declared type, shape (events,).

    A value that is out of the type's range becomes infinite. Raises AnalysisError for another shape, and, unless
    the observable allows it, for a value that is not finite.
    """
    what, function, events = f"observable {observable.name!r}", observable.values, len(given["weight"])
    returned = _called(what, function, given, found)
    if not isinstance(returned, np.ndarray) or returned.shape != (events,) or returned.dtype.kind not in "fiu":
        raise _mistake(
            what, function, f"returned {_kind(returned)}; it must return an array of numbers of shape ({events},)"
        )  # fmt: skip
    if not observable.allow_nan and not np.isfinite(returned).all():
        bad = returned[~np.isfinite(returned)]
        raise _mistake(
            what,
            function,
            f"is {bad[0]} in {len(bad)} of {events} events; every value must be finite, "
            "or the observable have allow_nan=True, which leaves such events out of the histogram",
        )
    with np.errstate(over="ignore"):
        return returned.astype(observable.dtype, copy=False)


def channels(analysis: Analysis, found: Any, given: Columns) -> Array:
    """Return the index of each event's channel, shape (events,); raises AnalysisError for one that does not exist."""
    function, events = analysis.channel, len(given["weight"])
    returned = _called("channel", function, given, found)
    if not isinstance(returned, np.ndarray) or returned.shape != (events,) or returned.dtype != np.int8:
        raise _mistake(
            "channel", function, f"returned {_kind(returned)}; it must return an array of int8 of shape ({events},)"
        )
    if events and not (returned.min() >= 0 and returned.max() < len(analysis.channels)):
        raise _mistake(
            "channel",
            function,
            f"returned a value outside 0 to {len(analysis.channels) - 1} for an event that passes all steps; "
            "it must be the index of one of the channels",
        )
    return returned


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


def location_of(function: Callable[..., Any]) -> str:
    """Return ``FILE:LINE`` of a function, or its description if it is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return repr(function) if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _called(what: str, function: Callable[P, T], names: Any, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function; an exception of it is raised as an AnalysisError. ``names`` are the columns that it may use."""
    try:
        return function(*args, **kwargs)
    except (PipelineError, MemoryError):
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        hint = f"; the columns are {', '.join(names)}" if isinstance(error, LookupError | AttributeError) else ""
        where = _line(error, function)
        raise AnalysisError(f"{where}: {what} raised {type(error).__name__}: {text}{hint}") from error


def _line(error: Exception, function: Callable[..., Any]) -> str:
    """Return where an exception was raised: the last line in the file of the function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if code is not None and frame.filename == code.co_filename] or frames
    return f"{ours[-1].filename}:{ours[-1].lineno}"


def _mistake(what: str, function: Callable[..., Any], problem: str) -> AnalysisError:
    return AnalysisError(f"{location_of(function)}: {what} {problem}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    return f"{type(value).__name__} ({value!r:.60})"
