"""Micro-batches through a chain of layer shards, all of them busy.

An actor runs its calls in the order they were submitted, so the order of submission is the
schedule. Hidden states go from actor to actor; the driver holds references to them, and tokens.

A stream is a generator of micro-batches under way: it submits as far ahead as the chain may be
filled, then yields the next one to wait for. So several chains are driven in turn.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.cluster.calls import Actor, result
from schemas.run.moments import Pass
from workers.model.shard import Step


class Batch(NamedTuple):
    """One micro-batch: tokens (sequences, length), and where they stand in their stream."""

    step: Step
    tokens: Tensor


class Flight(NamedTuple):
    """A micro-batch under way: its last result, and how many tokens it has."""

    reference: Any
    tokens: int


Stream = Iterator[Flight]
Source = Callable[[Batch], Any]  # what enters a chain: tokens, or a reference to rows
Sink = Callable[[Batch, Any], Any]  # what becomes of the rows that leave it: the last reference


def micro_batches(windows: Tensor, size: int, segments: int) -> list[Batch]:
    """Micro-batches of `windows` (count, tokens), in order.

    Segments are of whole micro-batches and as equal as can be. Each part owns its memory: pickling
    a view would send all windows with it.
    """
    parts = [windows[i : i + size].clone() for i in range(0, len(windows), size)]
    return [
        Batch(Step(index * size, index * segments // len(parts)), part)
        for index, part in enumerate(parts)
    ]


def replica_batches(batches: list[Batch], segments: int, replicas: int) -> list[list[Batch]]:
    """The micro-batches of each replica: whole segments, as equal in number as can be."""
    return [
        [batch for batch in batches if batch.step.segment * replicas // segments == replica]
        for replica in range(replicas)
    ]


def stream_forward(
    chain: list[Actor], batches: list[Batch], source: Source, sink: Sink, *options: Any
) -> Stream:
    """Every micro-batch once through all shards; `options` are further arguments of `forward`."""
    flight: deque[Flight] = deque()
    for batch in batches:
        rows = source(batch)
        for shard in chain:
            rows = shard.forward.remote(rows, batch.step, *options)
        flight.append(Flight(sink(batch, rows), batch.tokens.numel()))
        if len(flight) > 2 * len(chain):
            yield flight.popleft()
    yield from flight


def stream_backward(
    chain: list[Actor], batches: list[Batch], source: Source, turn: Sink, sink: Sink
) -> Stream:
    """Every micro-batch forward through all shards, and its loss gradient back through them.

    `turn` gives the gradient that enters the last shard. Each shard alternates backward and forward
    after a head start of two forwards for itself and every shard behind it (the 1F1B schedule with
    slack); as many inputs wait in it at most.
    """
    last, depth = len(chain) - 1, 2 * len(chain)
    queues = [deque(one_forward_one_backward(len(batches), depth - 2 * s)) for s in range(last + 1)]
    ready: dict[tuple[Pass, int, int], Any] = {}
    finished: deque[Flight] = deque()

    def submit(s: int, direction: Pass, i: int) -> None:
        batch = batches[i]
        if direction == "forward":
            rows = ready.pop(("forward", s, i)) if s else source(batch)
            rows = chain[s].forward.remote(rows, batch.step, "gradient")
            if s == last:
                ready["backward", s, i] = turn(batch, rows)
            else:
                ready["forward", s + 1, i] = rows
            return
        rows = chain[s].backward.remote(ready.pop(("backward", s, i)), batch.step)
        if s:
            ready["backward", s - 1, i] = rows
        else:
            finished.append(Flight(sink(batch, rows), batch.tokens.numel()))

    while any(queues):
        for s, queue in enumerate(queues):
            while queue and (_enters(s, queue[0]) or (queue[0][0], s, queue[0][1]) in ready):
                submit(s, *queue.popleft())
        while len(finished) > depth:
            yield finished.popleft()
    yield from finished


def one_forward_one_backward(count: int, head_start: int) -> list[tuple[Pass, int]]:
    """A shard's calls in order: `head_start` forwards, then backward and forward in turn."""
    order: list[tuple[Pass, int]] = [("forward", i) for i in range(min(head_start, count))]
    for i in range(count):
        order.append(("backward", i))
        if i + head_start < count:
            order.append(("forward", i + head_start))
    return order


def as_it_is(batch: Batch, rows: Any) -> Any:
    """The sink of a chain whose last results stay where they are."""
    return rows


def drive(
    streams: list[Stream], what: str, timeout_s: float, through: Callable[[int, Any], None]
) -> None:
    """Run streams side by side to their ends; `through` gets the tokens of each micro-batch that
    is through, and its last result, in the order of its stream.

    Raises as `result` does.
    """
    while streams:
        for stream in list(streams):
            flight = next(stream, None)
            if flight is None:
                streams.remove(stream)
                continue
            through(flight.tokens, result(flight.reference, what, timeout_s))


def _enters(shard: int, call: tuple[Pass, int]) -> bool:
    return shard == 0 and call[0] == "forward"
