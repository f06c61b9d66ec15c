"""The largest ratio that keeps a budget, on a grid: by its predicted cost, or by what is measured.

A size follows from ranks, so it needs no trial. A loss has to be measured, which takes a truncation
and an evaluation; the spectra predict it at every ratio for nothing.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

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
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


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
    points = [
        (at, math.log(max(measured[at], _LEAST * limit) / known(at))) for at in sorted(measured)
    ]

    def within(at: int) -> bool:
        return known(at) * math.exp(_interpolated(points, at)) <= limit

    return within


def _interpolated(points: list[tuple[int, float]], at: int) -> float:
    """Interpolate points in rising order; 0 without any, constant beyond them."""
    below = [point for point in points if point[0] <= at]
    above = [point for point in points if point[0] >= at]
    if not (below and above):
        return (below[-1:] + above[:1] or [(0, 0.0)])[0][1]
    (left, low), (right, high) = below[-1], above[0]
    share = 0.0 if left == right else (at - left) / (right - left)
    return low + share * (high - low)
