"""Format numbers for readers, with the digits that their uncertainties allow. Result files keep all digits."""

from __future__ import annotations

import math
from decimal import Context, Decimal

#: Text of a number that is missing or not finite.
MISSING = "–"
#: Numbers from here on, and uncertainties with more decimals than MAX_DECIMALS, are written with an exponent.
TOO_LARGE = 1e15
MAX_DECIMALS = 6
#: More digits than any float has.
_EXACT = Context(prec=1000)


def rounded(value: float, *errors: float | None) -> tuple[str, ...]:
    """Return the texts of a value and of its uncertainties, rounded by the rule of the Particle Data Group.

    The smallest uncertainty above 0 gives the last decimal place of all of them: two digits of it
    are kept if its three leading digits are 100 to 354 or, rounded up to 1000, 950 to 999; one
    digit is kept if they are 355 to 949. Without such an uncertainty the value is formatted by
    ``number``. An uncertainty that is missing (None) or not finite is ``MISSING``.

    Source: Particle Data Group, Review of Particle Physics, Introduction, section "Rounding".
    """
    known = [error for error in errors if error is not None and math.isfinite(error) and error > 0]
    if not known or not math.isfinite(value):
        return (number(value), *(number(error) for error in errors))
    leading, exponent = f"{min(known):.2e}".split("e")
    place = (1 if float(leading) < 3.545 else 0) - int(exponent)
    with_exponent = place > MAX_DECIMALS or max(abs(value), *known) >= TOO_LARGE
    return tuple(_text(one, place, with_exponent=with_exponent) for one in (value, *errors))


def with_error(value: float, error: float | None) -> str:
    """Format a value with its uncertainty, if it has one: 1.23 ± 0.12."""
    return " ± ".join(rounded(value, *(() if error is None else (error,))))


def rounded_yield(events: int, value: float, error: float) -> tuple[str, str]:
    """Return the texts of a yield and of its uncertainty; a yield that counts its events is not rounded."""
    text, error_text = rounded(value, error)
    return (f"{events:,}" if value == events else text), error_text


def number(value: float | None, digits: int = 4) -> str:
    """Format a number without an uncertainty: 1,234 or 0.0123."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= TOO_LARGE:
        return f"{value:.{digits}g}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """Format a duration: 1.2 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _text(value: float | None, place: int, *, with_exponent: bool) -> str:
    """Round to a decimal place, which is negative to the left of the decimal point; 0 has no sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    found = Decimal(repr(float(value))).quantize(Decimal((0, (1,), -place)), context=_EXACT)
    if not found:
        return "0" if with_exponent else f"{abs(found):,f}" if place > 0 else "0"
    return f"{found:e}" if with_exponent else f"{found:,f}"
