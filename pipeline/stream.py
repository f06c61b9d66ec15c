"""Micro-batches through a chain of layer shards, all of them busy.

An actor runs its calls in the order they were submitted, so the order of submission is the
schedule. Hidden states go from actor to actor; the driver holds references to them, and tokens.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pipeline.cluster import Actor, result
from schemas.moments import Pass
from workers.shard import Step


def stream_forward(
    shards: list[Actor], windows: Tensor, micro_batch: int, segments: int, wait: "Waiter"
) -> None:
    """Every window (count, tokens) once through all shards."""
    flight: deque[tuple[Any, int]] = deque()
    for step, tokens in _micro_batches(windows, micro_batch, segments):
        hidden: Any = tokens
        for shard in shards:
            hidden = shard.forward.remote(hidden, step)
        flight.append((hidden, tokens.numel()))
        if len(flight) > 2 * len(shards):
            wait(*flight.popleft())
    for reference, tokens_done in flight:
        wait(reference, tokens_done)


def stream_backward(
    shards: list[Actor], windows: Tensor, micro_batch: int, segments: int, wait: "Waiter"
) -> None:
    """Every window forward through all shards, and its loss gradient back through them.

    Each shard alternates backward and forward after a head start of two forwards for itself and
    every shard behind it (the 1F1B schedule with slack); as many inputs wait in it at most.
    """
    batches = _micro_batches(windows, micro_batch, segments)
    last, depth = len(shards) - 1, 2 * len(shards)
    queues = [deque(one_forward_one_backward(len(batches), depth - 2 * s)) for s in range(last + 1)]
    ready: dict[tuple[Pass, int, int], Any] = {
        ("forward", 0, i): tokens for i, (_, tokens) in enumerate(batches)
    }
    finished: deque[tuple[Any, int]] = deque()

    def submit(s: int, direction: Pass, i: int) -> None:
        step, tokens = batches[i]
        shard = shards[s]
        call = shard.forward_for_gradient if direction == "forward" else shard.backward
        output = call.remote(ready.pop((direction, s, i)), step)
        if direction == "forward":
            ready[("backward", s, i) if s == last else ("forward", s + 1, i)] = output
        elif s:
            ready["backward", s - 1, i] = output
        else:
            finished.append((output, tokens.numel()))

    while any(queues):
        for s, queue in enumerate(queues):
            while queue and (queue[0][0], s, queue[0][1]) in ready:
                submit(s, *queue.popleft())
        while len(finished) > depth:
            wait(*finished.popleft())
    for reference, tokens_done in finished:
        wait(reference, tokens_done)


def one_forward_one_backward(count: int, head_start: int) -> list[tuple[Pass, int]]:
    """A shard's calls in order: `head_start` forwards, then backward and forward in turn."""
    order: list[tuple[Pass, int]] = [("forward", i) for i in range(min(head_start, count))]
    for i in range(count):
        order.append(("backward", i))
        if i + head_start < count:
            order.append(("forward", i + head_start))
    return order


Waiter = Callable[[Any, int], None]


def waiter(what: str, timeout_s: float, done: Callable[[int], None]) -> Waiter:
    """Waits for a reference and reports the tokens that are through."""

    def wait(reference: Any, tokens: int) -> None:
        result(reference, what, timeout_s)
        done(tokens)

    return wait


def _micro_batches(windows: Tensor, size: int, segments: int) -> list[tuple[Step, Tensor]]:
    """Micro-batches of `windows` (count, tokens) with their steps, in order.

    Segments are of whole micro-batches and as equal as can be. Each part owns its memory: pickling
    a view would send all windows with it.
    """
    parts = [windows[i : i + size].clone() for i in range(0, len(windows), size)]
    return [
        (Step(index * size, index * segments // len(parts)), part)
        for index, part in enumerate(parts)
    ]
