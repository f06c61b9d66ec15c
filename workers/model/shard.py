"""A contiguous range of decoder layers: streams hidden states, accumulates their moments."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from schemas.errors import WorkerError
from schemas.model.spec import MatrixSpec
from schemas.run.moments import Pass, Tap
from workers.calibration.moments import MomentAccumulator, MomentSums
from workers.calibration.sampling import fisher_gradient, label_noise
from workers.model.layers import Decoder, Head
from workers.model.unread import unread
from workers.process.devices import free_cached
from workers.process.failures import short_of_memory

# The purpose of a forward pass: its moments, a backward pass that follows, or only its output.
Purpose = Literal["moments", "gradient", "output"]


class Step(NamedTuple):
    """One micro-batch of a stream: its first sequence, and the segment of its sums."""

    first_sequence: int
    segment: int


class Shard:
    """Layers `layers` of a decoder, with the embedding and the head if they belong to it.

    Hidden states are (sequences, tokens, hidden) in the compute dtype, between layers and between
    shards alike.

    If a micro-batch does not fit in memory, it and all later ones are computed one sequence at a
    time, and `adapted` is told. That may change rounding, as `calibration.micro_batch` does.
    """

    def __init__(
        self,
        decoder: Decoder,
        layers: range,
        first: bool,
        last: bool,
        taps: Sequence[Tap],
        adapted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._layers = {index: decoder.layer(index) for index in layers}
        self._ends = {index: decoder.end(layer) for index, layer in self._layers.items()}
        self._embedding = decoder.embedding() if first else None
        self._head = decoder.head() if last else None
        self._sums = {
            tap: MomentAccumulator(tap.size if tap.moment else None, adapted) for tap in taps
        }
        self._step = Step(0, 0)
        self._observing: Pass | None = None
        self._inputs: dict[int, list[Tensor]] = {}
        self._adapted = adapted
        self._singly = False
        self._observed: set[Tap] = set()  # in the current micro-batch
        for index, layer in self._layers.items():
            self._observe(layer, [tap for tap in taps if tap.layer == index])

    @property
    def is_first(self) -> bool:
        """Whether it begins with the embedding."""
        return self._embedding is not None

    @property
    def is_last(self) -> bool:
        """Whether it ends with the head."""
        return self._head is not None

    @property
    def head(self) -> Head:
        """The head. Raises ValueError if it belongs to another shard."""
        if self._head is None:
            raise ValueError("this shard does not hold the head")
        return self._head

    def forward(self, hidden: Tensor, step: Step, purpose: Purpose = "moments") -> Tensor:
        """Return hidden states after the last layer, from those before the first (or token ids).

        For a gradient, every layer's input is kept for `backward` on the same step. Raises
        WorkerError if a single sequence does not fit in memory.
        """
        return self._fitting(partial(self._forward, purpose=purpose), hidden, step)

    @torch.no_grad()
    def _forward(self, hidden: Tensor, step: Step, purpose: Purpose) -> Tensor:
        self._step, self._observing = step, "forward" if purpose == "moments" else None
        keep_inputs = purpose == "gradient"
        if self._embedding is not None:
            hidden = nn.functional.embedding(hidden.to(self._embedding.device), self._embedding)
        inputs = []
        for layer in self._layers.values():
            if keep_inputs:
                inputs.append(hidden)
            hidden = layer(inputs_embeds=hidden, use_cache=False).last_hidden_state
        if keep_inputs:
            self._inputs[step.first_sequence] = inputs
        return hidden

    def loss_gradient(self, hidden: Tensor, step: Step, seed: int) -> Tensor:
        """Return the gradient of the summed token loss at the last layer's hidden states."""
        norm, head = self.head
        parts = []
        for row, sequence in enumerate(hidden):
            noise = label_noise(seed, step.first_sequence + row, sequence.shape[0])
            parts.append(fisher_gradient(sequence, norm, head, noise))
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
        self._step, self._observing = step, "backward"
        inputs = self._inputs[step.first_sequence]
        for (index, layer), before in zip(
            reversed(self._layers.items()), reversed(inputs), strict=True
        ):
            hidden = before.detach().requires_grad_()
            with torch.enable_grad(), unread(self._ends[index]):
                output = layer(inputs_embeds=hidden, use_cache=False).last_hidden_state
            (gradient,) = torch.autograd.grad(output, hidden, gradient)
        return gradient

    def _fitting(
        self, compute: Callable[[Tensor, Step], Tensor], rows: Tensor, step: Step
    ) -> Tensor:
        """Run `compute` on a micro-batch; one sequence at a time once memory was short.

        If a micro-batch fails, what its taps have already observed is not added a second time.
        """
        self._observed = set()
        if not self._singly:
            try:
                return compute(rows, step)
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise self._too_large(rows, error) from error
            self._go_singly(rows)  # here, where the traceback holds no tensor of the attempt
        seen, parts = frozenset(self._observed), []
        for row, part in enumerate(torch.split(rows, 1)):
            self._observed = set(seen)
            try:
                parts.append(compute(part, Step(step.first_sequence + row, step.segment)))
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
                raise self._too_large(rows, error) from error
        return torch.cat(parts)

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
            f"({str(error).splitlines()[0]}); use shorter ones (--sequence-length, "
            "--gradient-length), or fewer layers a worker (--set cluster.shard_layers=N)"
        )

    @property
    def _where(self) -> str:
        layers = list(self._layers)
        return f"layers {layers[0]} to {layers[-1]}"

    def take_sums(self, direction: Pass) -> Iterator[tuple[Tap, MomentSums]]:
        """Yield the sums of one stream, releasing each as it is taken."""
        for tap in [tap for tap in self._sums if tap.direction == direction]:
            yield tap, self._sums.pop(tap).sums()

    def weight(self, matrix: MatrixSpec) -> Tensor | None:
        """Return W (m, n) in the compute dtype, on the device; None if another shard holds it."""
        layer = self._layers.get(matrix.layer)
        return None if layer is None else _linear(layer, matrix.name).weight

    def _observe(self, layer: nn.Module, taps: Sequence[Tap]) -> None:
        for tap in taps:
            module = _linear(layer, tap.module)
            if tap.direction == "forward":
                module.register_forward_hook(self._forward_hook(tap))
            else:
                module.register_full_backward_hook(self._backward_hook(tap))

    def _forward_hook(self, tap: Tap) -> Callable[[nn.Linear, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._observing == "forward":
                rows = args[0] if tap.side == "input" else _without_bias(module, output)
                self._add(tap, rows)

        return hook

    def _backward_hook(
        self, tap: Tap
    ) -> Callable[[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...]], None]:
        def hook(
            module: nn.Module, at_input: tuple[Tensor, ...], at_output: tuple[Tensor, ...]
        ) -> None:
            rows = at_input[0] if tap.side == "input" else at_output[0]
            self._add(tap, rows, trace_of=at_output[0])

        return hook

    def _add(self, tap: Tap, rows: Tensor, trace_of: Tensor | None = None) -> None:
        if tap not in self._observed:
            self._sums[tap].add(rows, self._step.segment, trace_of)
            self._observed.add(tap)


def _linear(layer: nn.Module, name: str) -> nn.Linear:
    """Return the module of matrix `name` in a base model with only its layer."""
    module = layer.get_submodule("layers.0." + name.split(".", 2)[2])
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear layer")
    return module


def _without_bias(module: nn.Linear, output: Tensor) -> Tensor:
    bias: Tensor | None = module.bias
    return output if bias is None else output.float() - bias.float()
