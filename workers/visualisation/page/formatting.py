"""Format numbers, times and settings for the page."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from markupsafe import Markup


def number(value: float | None, digits: int = 4) -> str:
    """Format a number: 1,234 or 0.0123."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def throughput(events_per_second: float) -> str:
    """Format events per second with three significant figures: 6,630 or 0.123."""
    if not math.isfinite(events_per_second) or abs(events_per_second) < 100:
        return number(events_per_second, 3)
    return f"{float(f'{events_per_second:.3g}'):,.0f}"


def event_yield(value: float) -> str:
    """Format a yield: a count without decimals, a sum of weights with three."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def setting(value: object) -> str:
    """Format the value of a setting."""
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case list() | tuple():
            return ", ".join(setting(item) for item in value) or "none"
        case dict():
            return ", ".join(f"{name}: {setting(item)}" for name, item in value.items())
    return str(value)


def duration(seconds: float | None) -> str:
    """Format a duration: 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def timestamp(seconds: float) -> Markup:
    """Format seconds since 1970 as a <time> element, in UTC."""
    when = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(f"{when:%Y-%m-%dT%H:%M:%SZ}", f"{when:%Y-%m-%d %H:%M} UTC")


def size(number_of_bytes: int) -> str:
    """Format the size of a file: 12.3 MB."""
    value = float(number_of_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
