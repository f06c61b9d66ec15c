"""Gradients of the token loss at the hidden states, with labels sampled from the model itself."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

_CHUNK = 256  # tokens
_ROWS = 8192  # of the head that a CPU holds in float32 at a time


def label_noise(seed: int, sequence: int, length: int) -> Float64[Tensor, " length"]:
    """Uniform in [0, 1), (length,) float64; depends only on seed, sequence and position."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + sequence) % 2**32)
    return torch.rand(length, generator=generator, dtype=torch.float64)


def fisher_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    tail: Callable[[Tensor], Tensor],
    noise: Float64[Tensor, " tokens"],
) -> Float[Tensor, "tokens hidden"]:
    """Gradient (tokens, hidden) of the summed loss -log p(y) at the last hidden states.

    y ~ p(. | hidden), drawn by inverting the cumulative distribution at `noise` (tokens,): the
    second moment of these gradients is the true Fisher. `tail` gives logits (1, tokens, vocabulary)
    float32 from hidden states (1, tokens, hidden), through `wide_product`; they exist for 256
    tokens at a time, and their gradient is written as softmax - onehot instead of differentiated.
    """
    chunks = zip(torch.split(hidden, _CHUNK), torch.split(noise, _CHUNK), strict=True)
    return torch.cat([_chunk_gradient(part, tail, its_noise) for part, its_noise in chunks])


def wide_product(
    rows: Float[Tensor, "*batch hidden"], head: Float[Tensor, "vocabulary hidden"]
) -> Float32[Tensor, "*batch vocabulary"]:
    """Return rows head^T in float32, even from half precision: rounded to halves, logits would draw
    labels from another distribution. Gradients of `rows` are in their own precision.
    """
    apply: Any = _WideProduct.apply
    product: Tensor = apply(rows.flatten(0, -2), head)
    return product.view(*rows.shape[:-1], len(head))


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(head)
        return _logits(rows, head)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (head,) = ctx.saved_tensors
        return gradient.to(head.dtype) @ head, None


def _chunk_gradient(hidden: Tensor, tail: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    hidden = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = tail(hidden[None])[0]
    probabilities = logits.detach().softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    threshold = noise.to(cumulative.device)[:, None] * cumulative[:, -1:]
    labels = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[-1] - 1)
    error = probabilities.scatter_add_(
        1, labels, torch.full_like(labels, -1, dtype=probabilities.dtype)
    )
    (gradient,) = torch.autograd.grad(logits, hidden, error)
    return gradient


def _logits(
    hidden: Float[Tensor, "tokens hidden"], head: Float[Tensor, "vocabulary hidden"]
) -> Float32[Tensor, "tokens vocabulary"]:
    if hidden.dtype == torch.float32:
        return hidden @ head.T
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return torch.cat([hidden.float() @ rows.float().T for rows in torch.split(head, _ROWS)], -1)
