"""SVG as text: elements, scales and axes. Colours are classes that the style sheet defines."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from schemas.printable import one_line

_MOST_TICKS = 6


class Scale(NamedTuple):
    """Maps values from `low` to `high` onto pixels `start` to `end`, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return a value's pixel; the nearer end if it is outside, `start` if it is NaN."""
        low, high = self._of(self.low), self._of(self.high)
        part = (self._of(max(value, self.low)) - low) / (high - low) if high > low else 0.5
        return self.start + min(max(0.0, part), 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return a few round values between `low` and `high`; none if `high` is not finite."""
        if not math.isfinite(self.high):
            return []
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last - first < 1:
                digits = [d * 10.0**power for power in (first - 1, first, last) for d in (1, 2, 5)]
                return sorted({at for at in digits if self.low <= at <= self.high})
            step = math.ceil((last - first + 1) / _MOST_TICKS)
            return [10.0**power for power in range(first, last + 1, step)]
        wide = _round_step((self.high - self.low) / _MOST_TICKS)
        first, last = math.ceil(self.low / wide), math.floor(self.high / wide)
        return [wide * at for at in range(first, last + 1)]

    def _of(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element; text in it is escaped, `class_` becomes class, and a_b becomes a-b."""
    words = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else _text(child) for child in children)
    return Markup(f"<{name}{''.join(words)}>{inside}</{name}>")


def drawing(width: float, height: float, label: str, children: Iterable[Markup]) -> Markup:
    """Return an image; `label` describes it to those who cannot see it."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: str, kind: str = "label", anchor: str = "start") -> Markup:
    return tag("text", content, x=x, y=y, class_=kind, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[Markup]:
    """Draw grid lines, ticks and titles for both scales of a plot."""
    drawn = [line(x.start, y(at), x.end, y(at), "grid") for at in y.ticks()]
    drawn += [line(x(at), y.start, x(at), y.end, "grid") for at in x.ticks()]
    drawn += [text(x.start - 5, y(at) + 4, tick(y, at), "tick", "end") for at in y.ticks()]
    drawn += [text(x(at), y.start + 15, tick(x, at), "tick", "middle") for at in x.ticks()]
    drawn += [text(x.end, y.start + 30, x_title, "tick", "end")]
    return [*drawn, text(2, y.end - 8, y_title, "tick")]


def around(values: Sequence[float], logarithmic: bool, start: float, end: float) -> Scale:
    """Return a scale with room for all finite values (only positive ones, if logarithmic)."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not logarithmic)] or [1.0]
    low, high = min(found), max(found)
    if logarithmic:
        return Scale(low / 1.5, high * 1.5, start, end, logarithmic)
    room = (high - low or abs(high) or 1.0) * 0.08
    return Scale(low - room, high + room, start, end)


def _round_step(rough: float) -> float:
    """Return the next of 1, 2, 5, 10, ... times a power of ten, at or above a positive number."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)


def tick(scale: Scale, value: float) -> str:
    """Format a tick: with the decimals that its axis needs, or as a power of ten."""
    if not scale.logarithmic:
        step = scale.ticks()[1] - scale.ticks()[0] if len(scale.ticks()) > 1 else 1.0
        return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}"
    power = math.floor(math.log10(value) + 1e-9)
    if 0 <= power <= 3:
        return f"{value:,.0f}"
    superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    digit = round(value / 10.0**power)
    return f"{digit} · 10{superscript}" if digit > 1 else f"10{superscript}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return value if isinstance(value, Markup) else one_line(str(value))


def _text(content: str) -> str:
    return str(escape(one_line(content)))
