"""A contiguous range of decoder layers: streams hidden states, accumulates their moments."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from schemas.errors import WorkerError
from schemas.model.spec import MatrixSpec
from schemas.run.moments import Pass, Tap
from workers.calibration.moments import MomentSums
from workers.calibration.sampling import fisher_gradient, signs_of, wide_product
from workers.model.carving import Product
from workers.model.layers import Decoder
from workers.model.observer import Observer
from workers.model.unread import unread, weight_of
from workers.process.devices import free_cached
from workers.process.failures import first_line, short_of_memory

# The purpose of a forward pass: its moments, a backward pass that follows, the score of its tokens,
# or only its output.
Purpose = Literal["moments", "gradient", "score", "output"]


class Step(NamedTuple):
    """One micro-batch of a stream: its first sequence, and the segment of its sums."""

    first_sequence: int
    segment: int


class Shard:
    """Layers `layers` of a decoder, with the embedding and the head if they belong to it. There may
    be no layer: hidden states then pass as they are.

    Hidden states are (sequences, tokens, hidden) in the compute dtype, between layers and between
    shards alike.

    If a micro-batch does not fit in memory, it and all later ones are computed one sequence at a
    time, and `adapted` is told. That may change rounding, as `calibration.micro_batch` does.
    """

    def __init__(
        self,
        decoder: Decoder,
        layers: range,
        taps: Sequence[Tap],
        adapted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._layers = layers
        self._carved = decoder.part(layers)
        self._observer = Observer(self._carved.module, taps, adapted)
        self._inputs: dict[int, list[Tensor]] = {}
        self._adapted = adapted
        self._singly = False
        self._of_head: dict[Pass, list[Tap]] = {"forward": [], "backward": []}
        for tap in taps:
            if self._carved.module(tap.module) is self._carved.head:
                self._of_head[tap.direction].append(tap)

    @property
    def is_first(self) -> bool:
        """Whether it begins with the embedding."""
        return 0 in self._layers

    @property
    def is_last(self) -> bool:
        """Whether it ends with the head."""
        return self._layers.stop == len(self._carved.layers)

    @torch.no_grad()
    def tail(self, hidden: Tensor) -> Tensor:
        """Return logits (sequences, tokens, vocabulary) from the last layer's hidden states; only
        the last shard has the head.
        """
        self._observer.observing = None
        return self._carved.tail(hidden)

    def _observed_tail(
        self, direction: Pass, hidden: Tensor, product: Product | None
    ) -> Callable[[Tensor], Tensor]:
        """Return the tail, the first call of which adds its rows to the moments of the head."""
        self._observer.observing = None
        self._carved.require_blind(hidden)
        self._observer.observing = direction
        return partial(self._carved.tail, product=product)

    def forward(self, hidden: Tensor, step: Step, purpose: Purpose = "moments") -> Tensor:
        """Return hidden states after the last layer, from those before the first (or token ids).

        For a gradient, every layer's input is kept for `backward` on the same step. Raises
        WorkerError if a single sequence does not fit in memory.
        """
        return self._fitting(partial(self._forward, purpose=purpose), hidden, step)

    @torch.no_grad()
    def _forward(self, hidden: Tensor, step: Step, purpose: Purpose) -> Tensor:
        observed: Pass | None = "forward" if purpose == "moments" else None
        self._observer.observe(observed, step.segment, len(hidden))
        keep_inputs = purpose == "gradient"
        if self.is_first:
            hidden = self._carved.embed(hidden)
        inputs = []
        for index in self._layers:
            if keep_inputs:
                inputs.append(hidden)
            hidden = self._carved.layer(index, hidden)
        if keep_inputs:
            self._inputs[step.first_sequence] = inputs
        if purpose == "moments" and (taps := self._of_head["forward"]):
            blind = all(tap.side == "input" for tap in taps)
            self._observed_tail("forward", hidden, _nothing if blind else None)(hidden)
        return hidden

    def loss_gradient(self, hidden: Tensor, step: Step, seed: int) -> Tensor:
        """Return a gradient at the last layer's hidden states, by `fisher_gradient`."""
        self._observer.segment, self._observer.sequences = step.segment, 1
        if taps := self._of_head["backward"]:
            observed = self._observed_tail("backward", hidden, wide_product)

            def tail(rows: Tensor) -> Tensor:  # each call has rows of its own
                self._observer.seen.difference_update(taps)
                return observed(rows)
        else:
            tail = partial(self._carved.tail, product=wide_product)
        parts = []
        for row, sequence in enumerate(hidden):
            signs = signs_of(seed, step.first_sequence + row, sequence.device)
            parts.append(fisher_gradient(sequence, tail, signs))
        return torch.stack(parts)

    def backward(self, gradient: Tensor, step: Step) -> Tensor:
        """Return the gradient before the first layer, given the one after the last.

        Raises as `forward` does.

        Each layer is computed again, except its final product, whose value nothing reads.
        """
        below = self._fitting(self._backward, gradient, step)
        for row in range(len(gradient)):
            self._inputs.pop(step.first_sequence + row, None)
        return below

    def _backward(self, gradient: Tensor, step: Step) -> Tensor:
        self._observer.observe("backward", step.segment, len(gradient))
        inputs = self._inputs[step.first_sequence]
        for index, before in zip(reversed(self._layers), reversed(inputs), strict=True):
            hidden = before.detach().requires_grad_()
            with torch.enable_grad(), unread(self._carved.ends(index)):
                output = self._carved.layer(index, hidden)
            (gradient,) = torch.autograd.grad(output, hidden, gradient)
        return gradient

    def _fitting(
        self, compute: Callable[[Tensor, Step], Tensor], rows: Tensor, step: Step
    ) -> Tensor:
        """Run `compute` on a micro-batch; one sequence at a time once memory was short.

        If a micro-batch fails, what its taps have already observed is not added a second time.
        """
        self._observer.seen = set()
        if not self._singly and len(rows) > 1:
            try:
                return compute(rows, step)
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
            self._go_singly(rows)  # here, where the traceback holds no tensor of the attempt
        seen, parts = frozenset(self._observer.seen), []
        for row, part in enumerate(torch.split(rows, 1)):
            self._observer.seen = set(seen)
            try:
                parts.append(compute(part, Step(step.first_sequence + row, step.segment)))
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
                raise self._too_large(rows, error) from error
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _go_singly(self, rows: Tensor) -> None:
        self._singly = True
        self._inputs = {
            first + row: [tensor[row : row + 1] for tensor in inputs]
            for first, inputs in self._inputs.items()
            for row in range(len(inputs[0]))
        }
        free_cached()
        self._adapted(
            f"{self._where}: {len(rows)} sequences of {rows.shape[1]} tokens at a time did not fit "
            "in memory: taken one at a time"
        )

    def _too_large(self, rows: Tensor, error: BaseException) -> WorkerError:
        return WorkerError(
            f"{self._where}: one sequence of {rows.shape[1]} tokens does not fit in memory "
            f"({first_line(error)}); use shorter ones (--sequence-length, "
            "--gradient-length), or fewer layers a worker (--set cluster.shard_layers=N)"
        )

    @property
    def _where(self) -> str:
        return f"layers {self._layers[0]} to {self._layers[-1]}"

    def take_sums(self, direction: Pass) -> Iterator[tuple[Tap, MomentSums]]:
        """Yield the sums of one stream, releasing each as it is taken."""
        return self._observer.take_sums(direction)

    def weight(self, matrix: MatrixSpec) -> Tensor | None:
        """Return W (m, n) in the compute dtype, on the device; None if another shard holds it."""
        if matrix.layer not in self._layers:
            return None
        return weight_of(self._carved.module(matrix.module))[matrix.rows]


def _nothing(rows: Tensor, head: Tensor) -> Tensor:
    """Stand in for logits that nobody reads: these take no memory, biased, scaled or capped too."""
    return torch.empty(*rows.shape[:-1], len(head), dtype=rows.dtype, device="meta")
