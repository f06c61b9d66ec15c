"""Micro-batches through a chain of layer shards, keeping all of them busy.

An actor runs its calls in the order of their submission, so that order is the schedule. Hidden
states go from actor to actor; the driver holds only references to them, and the tokens.

A stream is a generator of micro-batches under way: it submits calls as far ahead as the chain may
be filled, then yields the next one to wait for. So one driver can run several chains in turn.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.cluster.calls import Actor, result
from schemas.run.moments import Pass
from workers.model.shard import Step


class Batch(NamedTuple):
    """One micro-batch: tokens (sequences, length), and their place in the stream."""

    step: Step
    tokens: Tensor


class Flight(NamedTuple):
    """A micro-batch under way: a reference to its last result, and its number of tokens."""

    reference: Any
    tokens: int


Stream = Iterator[Flight]
Source = Callable[[Batch], Any]  # returns what enters a chain: tokens, or a reference to rows
Sink = Callable[[Batch, Any], Any]  # takes the rows that leave a chain; returns the last reference


def micro_batches(windows: Tensor, size: int, segments: int) -> list[Batch]:
    """Cut `windows` (count, tokens) into micro-batches, in order.

    Segments consist of whole micro-batches and are as equal as possible. Each part owns its memory:
    pickling a view would send all windows with it.
    """
    parts = [windows[i : i + size].clone() for i in range(0, len(windows), size)]
    return [
        Batch(Step(index * size, index * segments // len(parts)), part)
        for index, part in enumerate(parts)
    ]


def replica_batches(batches: list[Batch], segments: int, replicas: int) -> list[list[Batch]]:
    """Return each replica's micro-batches: whole segments, in numbers as equal as possible."""
    return [
        [batch for batch in batches if batch.step.segment * replicas // segments == replica]
        for replica in range(replicas)
    ]


def stream_forward(
    chain: list[Actor], batches: list[Batch], source: Source, sink: Sink, *options: Any
) -> Stream:
    """Send every micro-batch once through all shards; `options` are passed on to `forward`."""
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
    """Send every micro-batch forward through all shards, and its loss gradient back.

    `turn` gives the gradient that enters the last shard. Each shard alternates backward and forward
    after a head start of two forwards for itself and every shard behind it (the 1F1B schedule with
    slack); at most that many inputs wait in it.
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
    """Return a shard's calls in order: `head_start` forwards, then backward and forward in turn."""
    order: list[tuple[Pass, int]] = [("forward", i) for i in range(min(head_start, count))]
    for i in range(count):
        order.append(("backward", i))
        if i + head_start < count:
            order.append(("forward", i + head_start))
    return order


def as_it_is(batch: Batch, rows: Any) -> Any:
    """A sink that leaves the chain's last results where they are."""
    return rows


def drive(
    streams: list[Stream], what: str, timeout_s: float, through: Callable[[int, Any], None]
) -> None:
    """Run streams side by side to their ends; `through` gets the tokens and the last result of each
    finished micro-batch, in the order of its stream.

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
