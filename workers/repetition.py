"""Whether generated texts repeat themselves: pure functions of texts and of their tokens."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.result.evaluation import EARLY, Generation, Written

_GRAM = 4
_FEWEST_WORDS = 8  # a shorter text is judged by its characters: some languages part no words
_REPEATS = 4  # of a cycle, before it counts
_COVERED = 0.5  # share of a text that a cycle must cover, up to the end of the text
_LONG = 24  # words; from here on a text's variety counts
_VARIETY = 0.2  # smallest share of distinct words in a long text
_BLANK = 8  # line breaks at the end of a text, with nothing after them


def generation_of(written: Mapping[str, Any]) -> Generation:
    """Return the figures of what a model wrote; `written` is of `continuations.written`."""
    return Generation(greedy=_figures(written["greedy"]), sampled=_figures(written["sampled"]))


def _figures(rows: Iterable[Mapping[str, Any]]) -> Written:
    texts = tuple(row["text"] for row in rows)
    tokens = [row["tokens"] for row in rows]
    return Written(
        repetition=math.fsum(map(repetition, tokens)) / len(tokens),
        degenerate=sum(degenerate(text) is not None for text in texts),
        early=sum(len(row) < EARLY for row in tokens),
        texts=texts,
    )


def repetition(tokens: Sequence[int]) -> float:
    """Return seq-rep-4 (Welleck et al., arXiv 1908.04319): 1 - distinct 4-grams / 4-grams.

    It is 0 for fewer than four tokens, which repeat nothing.
    """
    grams = [tuple(tokens[at : at + _GRAM]) for at in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def degenerate(text: str) -> str | None:
    """Return what is wrong with a generated text; None if nothing is.

    A text is degenerate if it is empty, if it repeats one short cycle or line breaks until its end,
    or if it is long and has hardly any distinct words. Lists, refrains and tables are meant to
    pass: the test would rather miss than accuse.
    """
    words = text.split()
    if not words:
        return "empty"
    if (blank := text[len(text.rstrip()) :].count("\n")) >= _BLANK:
        return f"{blank} line breaks at its end"
    by_words = len(words) >= _FEWEST_WORDS
    units: Sequence[str] = words[:-1] if by_words else "".join(words)  # the last may be cut
    if (period := _cycle(units)) is not None:
        unit = " ".join(units[-period:]) if by_words else "".join(units[-period:])
        return f"{unit!r} again and again"
    distinct = len(set(words))
    if len(words) >= _LONG and distinct < math.ceil(_VARIETY * len(words)):
        return f"{distinct} distinct words of {len(words)}"
    return None


def _cycle(units: Sequence[str]) -> int | None:
    """Length of the shortest cycle that covers most of a text up to its end; None if none does."""
    size = len(units)
    for period in range(1, size // _REPEATS + 1):
        covered = period
        while covered < size and units[size - covered - 1] == units[size - covered - 1 + period]:
            covered += 1
        fewest = max(_REPEATS * period, _FEWEST_WORDS)
        if covered >= max(fewest, _COVERED * size):
            return period
    return None
