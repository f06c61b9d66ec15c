"""The moments of taps: hooks on their modules add what passes while a stream is observed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from schemas.run.moments import Pass, Tap
from workers.calibration.moments import MomentAccumulator, MomentSums
from workers.model.unread import weight_of


class Observer:
    """Sums of the moments of `taps`, whose modules `module` finds by name.

    While `observing` a pass of some `sequences`, its taps add rows to the sums of `segment`: each
    the first ones that reach it, until it is taken out of `seen`. `adapted` is told when memory was
    short.
    """

    def __init__(
        self,
        module: Callable[[str], nn.Module],
        taps: Sequence[Tap],
        adapted: Callable[[str], None],
    ) -> None:
        self._sums = {
            tap: MomentAccumulator(tap.shape if tap.moment else None, adapted) for tap in taps
        }
        self.observing: Pass | None = None
        self.segment, self.sequences = 0, 1
        self.seen: set[Tap] = set()
        for tap in taps:
            self._observe(tap, module(tap.module))

    def observe(self, direction: Pass | None, segment: int, sequences: int) -> None:
        """Let the taps of a pass, or none, add rows to the sums of a segment from now on."""
        self.observing, self.segment, self.sequences = direction, segment, sequences

    def take_sums(self, direction: Pass) -> Iterator[tuple[Tap, MomentSums]]:
        """Yield the sums of one stream, releasing each as it is taken."""
        for tap in [tap for tap in self._sums if tap.direction == direction]:
            yield tap, self._sums.pop(tap).sums()

    def _observe(self, tap: Tap, module: nn.Module) -> None:
        if not isinstance(module, (nn.Linear, Conv1D)):
            raise TypeError(f"{tap.module} is a {type(module).__name__}, not a linear layer")
        if tap.direction == "forward":
            module.register_forward_hook(partial(self._on_forward, tap))
        else:
            self._observe_gradients(tap, module)

    def _on_forward(
        self, tap: Tap, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if self.observing == "forward":
            rows = args[0] if tap.side == "input" else _product(tap, module, args[0], output)
            self._add(tap, rows.float().abs().sqrt() if tap.of == "roots" else rows)

    def _observe_gradients(self, tap: Tap, module: nn.Module) -> None:
        """Hook the tensors, not the module: torch cannot hook a module whose output the layer then
        changes in place. What some rows contribute to the input gradient, no tensor has.
        """
        at_output: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.observing != "backward" or tap.side == "output" or tap.rows:
                return None
            if tap.of == "weight-gradient":
                return None
            mine = args[0].view_as(args[0])  # whose gradient is this module's contribution alone
            mine.register_hook(  # type: ignore[no-untyped-call]
                lambda rows: self._add(tap, rows, trace_of=at_output.pop())
            )
            return mine, *args[1:]

        def after(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self.observing != "backward":
                return
            if tap.of == "weight-gradient":
                inputs = self._apart(args[0].detach())
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda rows: self._add(tap, self._apart(_of(tap, rows)).mT @ inputs)
                )
            else:
                output.register_hook(arrived)  # type: ignore[no-untyped-call]

        def arrived(gradient: Tensor) -> None:
            mine = _of(tap, gradient)
            if tap.side == "output":
                self._add(tap, mine, trace_of=mine)
            elif tap.rows:
                self._add(tap, mine @ weight_of(module)[slice(*tap.rows)], trace_of=mine)
            else:
                at_output[:] = [gradient]  # in the place of one that a lack of memory left

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _apart(self, rows: Tensor) -> Tensor:
        """Return rows by sequence (sequences, tokens, q), in float32; some layers flatten them."""
        return rows.float().reshape(self.sequences, -1, rows.shape[-1])

    def _add(self, tap: Tap, rows: Tensor, trace_of: Tensor | None = None) -> None:
        if tap not in self.seen:
            self._sums[tap].add(rows, self.segment, trace_of)
            self.seen.add(tap)


def _of(tap: Tap, rows: Tensor) -> Tensor:
    """Return what a tap is about of the outputs of its module, or of their gradients."""
    return rows if tap.rows is None else rows[..., slice(*tap.rows)]


def _product(tap: Tap, module: nn.Module, rows: Tensor, output: Tensor) -> Tensor:
    """Return Wx of what a tap is about. With a bias it is computed once more: an output in half
    precision is rounded to the size of its bias, so taking that away leaves noise.
    """
    bias: Any = module.bias
    return _of(tap, output) if bias is None else rows @ _of(tap, weight_of(module).T)
