"""A linear layer whose output is never read, in a graph that exists only for its gradient."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class _Unread(torch.autograd.Function):
    """y = W x of rows x (..., n), with y left at zero but the true gradient of x."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return rows.new_zeros(*rows.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (weight,) = ctx.saved_tensors
        return None, gradient @ weight


@contextlib.contextmanager
def unread(linears: Iterable[nn.Module]) -> Iterator[None]:
    """While this lasts, `linears` are nodes of the graph, with their hooks, that compute no output.

    Gradients through them equal those of the omitted products, bit by bit.
    """
    replaced: list[Any] = list(linears)
    apply: Any = _Unread.apply
    for linear in replaced:
        linear.forward = partial(apply, weight_of(linear))
    try:
        yield
    finally:
        for linear in replaced:
            del linear.forward


def weight_of(linear: nn.Module) -> Tensor:
    """Return W (m, n) of a linear layer, however it keeps it."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight.T if isinstance(linear, Conv1D) else weight
