"""Timing side by side: a machine may change its speed between rounds, hardly within one."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Timings(NamedTuple, Generic[T]):
    """Seconds of each contender, round by round, and what each returned last."""

    rounds: Mapping[str, list[float]]
    results: Mapping[str, T]

    def seconds(self, name: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, reference: str) -> float:
        """Median over the rounds of time over time of the same round."""
        pairs = zip(self.rounds[name], self.rounds[reference], strict=True)
        return statistics.median(one / other for one, other in pairs)


def interleave(contenders: Mapping[str, Callable[[], T]], rounds: int) -> Timings[T]:
    """Call every contender once a round, in turn."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, T] = {}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            results[name] = call()
            found[name].append(time.perf_counter() - start)
    return Timings(found, results)
