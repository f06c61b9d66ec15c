"""Gradients of the token loss at the hidden states, with labels sampled from the model itself."""

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

_CHUNK = 256  # tokens
_ROWS = 8192  # of the head that a CPU holds in float32 at a time


def label_noise(seed: int, sequence: int, length: int) -> Float64[Tensor, " length"]:
    """Uniform in [0, 1), (length,) float64; depends only on seed, sequence and position."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + sequence) % 2**32)
    return torch.rand(length, generator=generator, dtype=torch.float64)


def fisher_gradient(
    hidden: Float[Tensor, "tokens hidden"],
    norm: nn.Module,
    head: Float[Tensor, "vocabulary hidden"],
    noise: Float64[Tensor, " tokens"],
) -> Float[Tensor, "tokens hidden"]:
    """Gradient (tokens, hidden) of the summed loss -log p(y) at the last hidden states.

    y ~ p(. | hidden), drawn by inverting the cumulative distribution at `noise` (tokens,): the
    second moment of these gradients is the true Fisher. The logits exist for 256 tokens at a time,
    in float32, and their gradient is written as softmax - onehot instead of differentiated.
    """
    parts = [
        _chunk_gradient(part, norm, head, part_noise)
        for part, part_noise in zip(_chunks(hidden), _chunks(noise), strict=True)
    ]
    return torch.cat(parts)


def _chunks(rows: Tensor) -> list[Tensor]:
    return [rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)]


def _chunk_gradient(hidden: Tensor, norm: nn.Module, head: Tensor, noise: Tensor) -> Tensor:
    hidden = hidden.detach().requires_grad_()
    with torch.enable_grad():
        normed = norm(hidden)
    probabilities = _logits(normed.detach(), head).softmax(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    threshold = noise.to(cumulative.device)[:, None] * cumulative[:, -1:]
    labels = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=head.shape[0] - 1)
    error = probabilities.scatter_add_(
        1, labels, torch.full_like(labels, -1, dtype=probabilities.dtype)
    )
    (gradient,) = torch.autograd.grad(normed, hidden, error.to(head.dtype) @ head)
    return gradient


def _logits(
    hidden: Float[Tensor, "tokens hidden"], head: Float[Tensor, "vocabulary hidden"]
) -> Float32[Tensor, "tokens vocabulary"]:
    """Logits (tokens, vocabulary) in float32, even from half precision: rounded to halves, they
    would draw labels from another distribution.
    """
    if hidden.dtype == torch.float32:
        return hidden @ head.T
    if hidden.is_cuda:
        return torch.mm(hidden, head.T, out_dtype=torch.float32)
    return torch.cat([hidden.float() @ rows.float().T for rows in torch.split(head, _ROWS)], -1)
