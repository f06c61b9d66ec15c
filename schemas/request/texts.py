"""Texts that a model is to see, each with its share of the tokens."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from schemas.request.settings import Words

MIXED = "mixed"
_MIXTURE = {"fineweb-edu": 0.5, "codeparrot": 0.2, "ultrachat": 0.3}  # web, code, instructions


def _given(value: Any) -> Any:
    """Take nothing as no text, but refuse a line that names none."""
    names = list(value) if isinstance(value, (list, tuple)) else [value]
    if names and all(isinstance(name, str) and not name.strip(" ,") for name in names):
        raise ValueError("it names no text; name one, or several with their shares: a.txt:2,c4")
    return () if value is None else value


def _without_presets(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return texts as they are, but the mixture as those that it consists of."""
    return tuple(text for one in texts for text in _parts(one))


Texts = Annotated[Words, BeforeValidator(_given), AfterValidator(_without_presets)]
"""One or several texts, separated by commas; each may have a share after a colon."""


def share_of(text: str) -> tuple[str, float]:
    """Split "c4:0.3" in the name of a text and its share; 1 if it has none.

    Raises ValueError if the share is not a positive number.
    """
    name, _, share = text.rpartition(":")
    try:
        found = float(share)
    except ValueError:  # a name with a colon in it, or without one
        return text, 1.0
    if not 0 < found < float("inf"):
        raise ValueError(f"{text}: the share after the colon must be above zero")
    return name.strip(), found


def shares_of(texts: Sequence[str]) -> dict[str, float]:
    """Return the share of every text, by its name; those of one that is named twice are added."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, share in map(share_of, texts):
        found[name] += share
    return dict(found)


def with_share(name: str, share: float) -> str:
    """Write a text with its share, as `share_of` splits it."""
    return name if share_of(name) == (name, share) else f"{name}:{share!r}".removesuffix(".0")


def split(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split a count by shares, rounded so that the parts add up to it and, if it is large enough,
    none is empty.
    """
    total = sum(shares.values())
    bounds = [round(count * share / total) for share in accumulate(shares.values(), initial=0.0)]
    widths = (stop - start for start, stop in pairwise(bounds))
    parts = dict(zip(shares, widths, strict=True))
    if count >= len(parts):
        for empty in [name for name, part in parts.items() if not part]:
            parts[max(parts, key=parts.__getitem__)] -= 1
            parts[empty] = 1
    return parts


def _parts(text: str) -> list[str]:
    name, share = share_of(text)
    if name != MIXED:
        return [text]
    return [f"{part}:{share * of_it:g}" for part, of_it in _MIXTURE.items()]
