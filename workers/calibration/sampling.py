"""Gradients of the token loss at the hidden states, whose second moment is the true Fisher."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

_CHUNK = 256  # tokens
_ROWS = 8192  # of the head that a CPU holds in float32 at a time


def signs_of(seed: int, sequence: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return what draws the random signs of a sequence, from seed, sequence and kind of device."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + sequence) % 2**32)


def fisher_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    tail: Callable[[Tensor], Tensor],
    signs: torch.Generator,
) -> Float[Tensor, "tokens hidden"]:
    """Gradient (tokens, hidden) at the last hidden states, of `fisher_error` at the logits.

    `tail` gives logits (1, tokens, vocabulary) float32 from hidden states (1, tokens, hidden),
    through `wide_product`; they exist for 256 tokens at a time.
    """
    parts = list[Tensor]()
    for part in torch.split(hidden.detach(), _CHUNK):
        rows = part.requires_grad_()
        with torch.enable_grad():
            logits = tail(rows[None])[0]
        parts += torch.autograd.grad(logits, rows, fisher_error(logits.detach(), signs))
    return torch.cat(parts)


def fisher_error(
    logits: Float32[Tensor, "tokens vocabulary"], signs: torch.Generator
) -> Float32[Tensor, "tokens vocabulary"]:
    """Random rows (tokens, vocabulary) with the mean and the second moment that the gradient of
    -log p(y) has at the logits, if y is drawn from p = softmax: 0, and diag(p) - p pᵀ, the Fisher.

    They are √p∘z - p (√p·z) with Rademacher z, a random sign for each entry. One drawn label tells
    of itself alone, and nearly nothing if the model is sure; this tells of every entry.
    """
    probabilities = logits.softmax(-1)
    bits = torch.randint(
        0, 2, logits.shape, generator=signs, dtype=torch.int8, device=logits.device
    )
    signed = probabilities.sqrt().mul_(bits.mul_(2).sub_(1))
    return signed - probabilities.mul_(signed.sum(-1, keepdim=True))


def wide_product(
    rows: Float[Tensor, "*batch hidden"], head: Float[Tensor, "vocabulary hidden"]
) -> Float32[Tensor, "*batch vocabulary"]:
    """Return rows head^T in float32, even from half precision: rounded to halves, logits would be
    those of another distribution. Gradients of `rows` are in their own precision.
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


def _logits(
    hidden: Float[Tensor, "tokens hidden"], head: Float[Tensor, "vocabulary hidden"]
) -> Float32[Tensor, "tokens vocabulary"]:
    if hidden.dtype == torch.float32:
        return hidden @ head.T
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return torch.cat([hidden.float() @ rows.float().T for rows in torch.split(head, _ROWS)], -1)
