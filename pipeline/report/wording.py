"""Numbers and names as people read them."""

import math
from collections.abc import Sequence
from pathlib import Path

from schemas.request.texts import shares_of
from workers.text.sources import is_local

_SPACE = "\N{NO-BREAK SPACE}"
_THOUSANDS = ("", "k", "M", "G", "T")
PER_CENT = f"{_SPACE}%"
TO = f"{_SPACE}→{_SPACE}"
_OPTIMISTIC, _NOISE = 1.5, 0.01
_MINUS = "\N{MINUS SIGN}"


def figure(value: float | None, digits: int = 3) -> str:
    """Format to some significant digits; very small or large numbers use powers of ten."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return _minus(f"{mantissa}e{int(exponent)}")
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return _minus(f"{value:,.{max(decimals, 0)}f}")


def optimism(predicted: float | None, measured: float | None) -> str:
    """Return a remark if the measured loss is over 1.5 times the predicted one, and by more than
    0.01 nats, else "".

    Both are increases of the mean token loss, in nats. The prediction is of second order.
    """
    if predicted is None or measured is None:
        return ""
    if measured <= max(_OPTIMISTIC * predicted, predicted + _NOISE):
        return ""
    return (
        ": the prediction is optimistic; more gradient tokens (--gradient-samples), or text more "
        "like this one, mend it"
    )


def count(number: int, one: str, several: str = "") -> str:
    """Format a number of things, as "1 window" or "1,024 windows"; `several` is another plural."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def short(number: float) -> str:
    """Format 134,515,008 as 134.5 M."""
    steps = 0
    while abs(number) >= 1000 and steps < len(_THOUSANDS) - 1:
        number, steps = number / 1000, steps + 1
    return f"{number:.{1 if steps else 0}f}{_SPACE if steps else ''}{_THOUSANDS[steps]}"


def size(value: float) -> str:
    """Format bytes in decimal units."""
    return short(value) + ("B" if value >= 1000 else f"{_SPACE}B")


def share(value: float, digits: int = 1) -> str:
    """Format a fraction in per cent."""
    return _minus(f"{100 * value:.{digits}f}") + PER_CENT


def texts(asked: Sequence[str]) -> str:
    """Name texts, files without their folders, and several with their shares."""
    shares = shares_of(asked)
    total = sum(shares.values())
    names = [Path(name).name if is_local(name) else name for name in shares]
    if len(names) > 1:
        parts = (f"{100 * part / total:.3g}{PER_CENT}" for part in shares.values())
        names = [f"{name} ({part})" for name, part in zip(names, parts, strict=True)]
    return ", ".join(names)


def change(before: float, after: float) -> str:
    """Format a change, in per cent."""
    if not before or not math.isfinite(after / before):
        return ""
    return _minus(f"{100 * (after / before - 1):+.1f}") + PER_CENT


def duration(seconds: float) -> str:
    """Format as seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f}{_SPACE}s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f}{_SPACE}min"
    return f"{seconds / 3600:.1f}{_SPACE}h"


def moment(time: str) -> str:
    """Format 2026-01-31T12:00:00+00:00 as 2026-01-31 12:00:00 UTC."""
    return time.replace("T", " ", 1).replace("+00:00", " UTC")


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)


def plain_size(value: float) -> str:
    """Format bytes for a terminal, without no-break spaces."""
    return size(value).replace(_SPACE, " ")


def plain_duration(seconds: float | None) -> str:
    """Format seconds, minutes or hours for a terminal, without no-break spaces."""
    return "?" if seconds is None else duration(seconds).replace(_SPACE, " ")
