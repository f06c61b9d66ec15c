"""The largest ratio that keeps a budget, on a grid: by its predicted cost, or by what is measured.

A size follows from ranks, so it needs no trial. A loss has to be measured, which takes a truncation
and an evaluation; the spectra predict it at every ratio for nothing.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

_LEAST = 1 / 8  # of the limit: a loss below it, which may be negative, counts as that


class Found(NamedTuple):
    """The largest number on the grid that was measured within the limit (0: none was), the one that
    the prediction alone chose, and all that was measured, in the order of the trials.

    `exceeded` is the least number that was measured beyond the limit; None if none was.
    """

    best: int
    predicted: int
    measured: dict[int, float]
    exceeded: int | None


def last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number in [low, high) for which a condition holds that ends once: it is
    taken to hold at `low`.
    """
    return low + bisect_left(range(low + 1, high), True, key=lambda at: not holds(at))


def search(
    predict: Callable[[int], float],
    measure: Callable[[int], float],
    limit: float,
    most: int,
    trials: int,
) -> Found:
    """Find the largest of 1, ..., `most` whose measured loss is within a limit; 0 loses nothing.

    `predict` must rise; it is called often, `measure` at most `trials` times. Each trial is where
    the prediction, corrected by what was measured so far, meets the limit: the logarithm of
    measured over predicted is interpolated between trials, and constant beyond them. The search
    ends when the next number is too much by measurement, or by the corrected prediction.
    """
    known = cache(lambda at: max(predict(at), 1e-12))
    measured: dict[int, float] = {}
    low, high = 0, most + 1
    predicted = max(last(lambda at: known(at) <= limit, low, high), 1)
    while high - low > 1 and len(measured) < trials:
        within = _corrected(known, measured, limit)
        at = last(within, low, high)
        if at == low and measured and low:
            break
        at = max(at, low + 1)
        measured[at] = measure(at)
        low, high = (at, high) if measured[at] <= limit else (low, at)
    return Found(low, predicted, measured, high if high <= most else None)


def _corrected(
    known: Callable[[int], float], measured: Mapping[int, float], limit: float
) -> Callable[[int], bool]:
    """Return whether the corrected prediction of a number is within the limit."""
    at_trials = sorted(measured)
    biases = [math.log(max(measured[at], _LEAST * limit) / known(at)) for at in at_trials]

    def within(at: int) -> bool:
        bias = np.interp(at, at_trials, biases) if biases else 0.0
        return known(at) * math.exp(bias) <= limit

    return within
