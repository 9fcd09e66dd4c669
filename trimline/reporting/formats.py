"""Numbers as people read them. Every rendering uses these, so that HTML, Markdown and the terminal say the same."""

from __future__ import annotations

import math
from collections.abc import Callable

from trimline.reporting.data import Measure

Show = Callable[[float], str]
NONE = "–"
LONG = 120.0  # seconds; above, minutes are easier to read
MINUS = "\u2212"


def count(value: float | None) -> str:
    """Parameters, FLOPs: one or two decimals with K, M, G or T (10^3 steps)."""
    if value is None:
        return NONE
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:.1f} {letter}" if scaled >= 10 else f"{scaled:.2f} {letter}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes, decimal units."""
    if value is None:
        return NONE
    text = count(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float | None) -> str:
    """A latency or a stage's time, in the unit that suits it."""
    if seconds is None:
        return NONE
    if seconds >= LONG:
        return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"
    if seconds >= 1:
        return f"{_digits(seconds)} s"
    return f"{_digits(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{_digits(seconds * 1e6)} µs"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A share between 0 and 1 as per cent."""
    return NONE if fraction is None else f"{fraction * 100:.{digits}f} %".replace("-", MINUS)


def change(before: float | None, after: float | None) -> str:
    """Relative change with its sign, such as ``−29.6 %``; beyond a doubling, the factor."""
    if before is None or after is None or not before:
        return NONE
    ratio = after / before
    if not math.isfinite(ratio) or ratio >= 3:
        return f"× {_digits(ratio)}"
    relative = ratio - 1
    return "unchanged" if relative == 0 else f"{'+' if relative > 0 else MINUS}{abs(relative) * 100:.1f} %"


def ratio(value: float | None) -> str:
    """A speed-up."""
    return NONE if value is None else f"{value:.2f}×"


def plain(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals."""
    if value is None:
        return NONE
    return f"{value:,.{digits}f}" if math.isfinite(value) else "infinite"


def perplexity(measure: Measure | None) -> str:
    """The value; in scientific notation where a model is broken."""
    if measure is None:
        return NONE
    return plain(measure.value) if measure.value < 1e4 else f"{measure.value:.2e}"


def error(measure: Measure | None) -> str:
    """``± 0.41``, or nothing where no standard error was computed."""
    return "" if measure is None or measure.error is None else f"± {plain(measure.error)}"


def interval(measure: Measure | None, digits: int = 2) -> str:
    """``[1.33, 1.39]``, or nothing where no interval was computed."""
    if measure is None or measure.low is None or measure.high is None:
        return ""
    return f"[{measure.low:.{digits}f}, {measure.high:.{digits}f}]"


def figure(value: float | None) -> str:
    """A gate's figure or bar: short, whatever its magnitude."""
    if value is None:
        return NONE
    return f"{value:.3g}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}".replace("e-0", "e-")


def _digits(value: float) -> str:
    """Three or four significant digits, never an exponent."""
    if not math.isfinite(value):
        return "∞"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def loads(known: bool | None) -> str:
    """Whether a program loads a result, as tables have it."""
    return "not looked at" if known is None else "yes" if known else "no"
