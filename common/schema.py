"""The declared fields of a message's events, and the check of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from common import lazy_numpy as np
from common.errors import MessageError
from common.field_types import TypedFields

if TYPE_CHECKING:
    import numpy.typing as npt


#: The types of numbers that columns have.
DType = Literal[
    "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]  # fmt: skip


@dataclass(frozen=True)
class Column(TypedFields):
    """A declared field: its dtype, the number of values an event if there are several, and the valid values.

    For floats, ``allow_nan`` and ``allow_infinite`` say whether NaN and infinite values are
    valid. Integers must be at least 0 and less than ``below`` if that is given.
    """

    dtype: DType
    size: int | None = None
    allow_nan: bool = True
    allow_infinite: bool = True
    below: int | None = None

    def check(self, name: str, values: npt.NDArray[Any]) -> None:
        """Raise MessageError, which names the field, unless all ``values`` are valid."""
        if self.below is not None and len(values) and not (values.min() >= 0 and values.max() < self.below):
            raise MessageError(f"field {name!r} has a value outside 0 to {self.below - 1}")
        if not self.allow_nan and np.isnan(values).any():
            raise MessageError(f"field {name!r} has a value that is not a number")
        if not self.allow_infinite and np.isinf(values).any():
            raise MessageError(f"field {name!r} has an infinite value")

    def shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of the field's values for ``length`` events."""
        return (length,) if self.size is None else (length, self.size)


Schema = Mapping[str, Column]
