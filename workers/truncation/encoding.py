"""How the factors of a matrix are stored: plain or pivoted, in the dtype of the checkpoint."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.model.spec import Encoding
from schemas.request.config import RunConfig
from workers.allocation.budget import MatrixLoss, cost, rank_within
from workers.calibration.moments import row_blocks
from workers.truncation.basis import Basis
from workers.truncation.pivoting import pivot


class Stored(NamedTuple):
    """A' B' as stored: tensors by their names in runtime/, and the error that storing adds."""

    encoding: Encoding
    rank: int
    tensors: dict[str, Tensor]
    rounding: float
    interpolation_max: float | None
    fallbacks: tuple[str, ...]


def encode(
    config: RunConfig, basis: Basis, weight: Tensor, loss: MatrixLoss, rank: int, dtype: torch.dtype
) -> Stored:
    """Encode W (m, n) at a rank in `dtype`; pivoted if asked for and well-conditioned."""
    a, b = basis.factors(weight, rank)
    if config.factors == "plain":
        return _plain(a, b, dtype, ())
    pivoted = pivot(a, b)
    bound = config.numerics.pivot_bound
    if pivoted.magnitude > bound:
        lower = _as_small(loss, rank)
        note = (
            f"pivoted at rank {rank} has max|T| = {pivoted.magnitude:.3g} > {bound:g}: "
            f"plain factors at rank {lower} used, within the same parameters"
        )
        return _plain(*basis.factors(weight, lower), dtype, (note,))
    magnitude = pivoted.magnitude
    tensors = {
        "down.weight": pivoted.rows.to(dtype),
        "up.weight": pivoted.interpolation.to(dtype),
        "order": pivoted.order,
    }
    del pivoted
    written = partial(_rows_with_identity, tensors["up.weight"])
    order = tensors["order"].argsort()
    rounding = _relative_error(
        written, tensors["down.weight"], lambda rows: a[order[rows]], b, len(a)
    )
    return Stored("pivoted", rank, tensors, rounding, magnitude, ())


def _as_small(loss: MatrixLoss, rank: int) -> int:
    """Return the rank of plain factors within the parameters of pivoted ones: on the matrix' grid,
    unless its lowest rank takes more.
    """
    budget = cost(loss.matrix, "pivoted", rank)
    for ranks in (loss, loss._replace(multiple=1)):
        lower = rank_within(ranks, "plain", budget) or rank
        if cost(loss.matrix, "plain", lower) <= budget:
            break
    return lower


def _plain(a: Tensor, b: Tensor, dtype: torch.dtype, fallbacks: tuple[str, ...]) -> Stored:
    tensors = {"down.weight": b.to(dtype), "up.weight": a.to(dtype)}
    up = tensors["up.weight"]
    rounding = _relative_error(
        lambda rows: up[rows].double(), tensors["down.weight"], lambda rows: a[rows], b, len(a)
    )
    return Stored("plain", a.shape[1], tensors, rounding, None, fallbacks)


def _rows_with_identity(interpolation: Tensor, rows: slice) -> Tensor:
    """Return rows of [I; T], T (m - k, k), in float64."""
    rank = interpolation.shape[1]
    below = interpolation[max(rows.start - rank, 0) : max(rows.stop - rank, 0)].double()
    identity = below.new_zeros(max(min(rows.stop, rank) - rows.start, 0), rank)
    identity.diagonal(rows.start if len(identity) else 0).fill_(1)
    return torch.cat([identity, below])


def _relative_error(
    written: Callable[[slice], Tensor],
    down: Tensor,
    exact: Callable[[slice], Tensor],
    right: Tensor,
    out_features: int,
) -> float:
    """||A' B' - A B|| / ||A B||, a block of rows at a time.

    `written` and `exact` give rows of A' and A in float64; `down` is B' as stored, `right` is B.
    """
    error = energy = 0.0
    down = down.double()
    for rows in row_blocks(out_features, right.shape[1]):
        block = exact(rows) @ right
        energy += float(block.square().sum())
        error += float((written(rows) @ down - block).square().sum())
    return math.sqrt(error / max(energy, 1e-300))
