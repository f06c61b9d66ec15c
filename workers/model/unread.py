"""A linear layer whose output is never read, in a graph that exists only for its gradient."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class _Unread(torch.autograd.Function):
    """y = W x of rows x (..., n), with y left at zero but the true gradient of x."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return rows.new_zeros(()).expand(*rows.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight, None


@contextlib.contextmanager
def unread(linear: nn.Module | None) -> Iterator[None]:
    """While this lasts, `linear` is a node of the graph, with its hooks, that computes no output.

    Gradients through it equal those of the omitted product, bit by bit.
    """
    if linear is None:
        yield
        return
    apply: Any = _Unread.apply
    replaced: Any = linear
    replaced.forward = lambda rows: apply(rows, linear.weight)
    try:
        yield
    finally:
        del replaced.forward
