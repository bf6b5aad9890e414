"""The check of a dataclass's fields against their annotations, for the parts of users' own analyses."""

from __future__ import annotations

import collections.abc
import inspect
import math
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from common.errors import AnalysisError


class TypedFields:
    """Base class of dataclasses whose fields must have the annotated types, and floats be finite.

    An int is a float, too; numpy's numbers are neither, because results are stored as JSON, but for a float64, which
    becomes a float. Raises AnalysisError.
    """

    def __post_init__(self) -> None:
        for field, (kind, annotation) in _fields(type(self)).items():  # type: ignore[arg-type]  # mypy: not hashable
            value = getattr(self, field)
            if kind is float and isinstance(value, float):  # numpy's float64 is one
                value = float(value)
                object.__setattr__(self, field, value)
            if not _is(value, kind):
                raise AnalysisError(
                    f"{self._where}: {field} is {type(value).__name__} ({value!r:.60}); "
                    f"it must be {_expected(kind, annotation)}"
                )

    @property
    def _where(self) -> str:
        """What a mistake is in."""
        name = getattr(self, "name", None)
        return type(self).__name__ if name is None else f"{type(self).__name__} {name!r}"


@cache
def _fields(cls: type[Any]) -> dict[str, tuple[Any, str]]:
    """The type of each field and its annotation, except for those that a subclass of a user adds."""
    found: dict[str, tuple[Any, str]] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("common."):
            texts = inspect.get_annotations(base)
            found |= {name: (kind, texts[name]) for name, kind in inspect.get_annotations(base, eval_str=True).items()}
    return found


def _is(value: object, kind: Any) -> bool:
    """Whether a value is of an annotated type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is(value, one) for one in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is collections.abc.Callable:
        return callable(value)
    if origin is collections.abc.Mapping:
        return isinstance(value, origin) and all(_is(key, args[0]) and _is(one, args[1]) for key, one in value.items())
    if origin is tuple:
        if args[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_is(one, args[0]) for one in value)
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_is, value, args))
    if kind is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is int if kind is int else isinstance(value, kind)


def _expected(kind: Any, annotation: str) -> str:
    """What a field must be, in words."""
    if kind is float:
        return "a finite int or float"
    if get_origin(kind) is collections.abc.Callable:
        return "a function"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return annotation
