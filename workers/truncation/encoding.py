"""How the factors of a matrix are stored: plain or pivoted, in the dtype of the checkpoint.

The pivots of a column-parallel matrix are columns: then ranks can share out the rows of `up`.
Those of all others are rows, and ranks can share out the columns of `down`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.configuration_lowrank import Matrix
from schemas.model.spec import Encoding
from schemas.request.config import RunConfig
from workers.allocation.budget import MatrixLoss, rank_within
from workers.calibration.moments import row_blocks
from workers.truncation.basis import Basis
from workers.truncation.pivoting import pivot

_ROTATED = 32  # that divides ranks of rotated factors: the least numbers that share a scale


class Stored(NamedTuple):
    """A' B' as stored: tensors by their names in runtime/, and the error that storing adds."""

    encoding: Encoding
    rank: int
    tensors: dict[str, Tensor]
    rounding: float
    interpolation_max: float | None
    fallbacks: tuple[str, ...]

    @property
    def matrix(self) -> Matrix:
        """What config.json says of it."""
        return Matrix(self.encoding, None if self.encoding == "dense" else self.rank)


def encode(
    config: RunConfig, basis: Basis, weight: Tensor, loss: MatrixLoss, rank: int, dtype: torch.dtype
) -> Stored:
    """Encode W (m, n) at a rank in `dtype`; pivoted if asked for and well-conditioned."""
    a, b = basis.factors(weight, rank)
    if config.factors == "plain":
        return plain_factors(a, b, dtype)
    stored = pivoted_factors(a, b, dtype, loss.matrix.column_parallel)
    bound = config.numerics.pivot_bound
    if stored.interpolation_max is None or stored.interpolation_max <= bound:
        return stored
    lower = _as_small(loss, rank)
    note = (
        f"pivoted at rank {rank} has max|T| = {stored.interpolation_max:.3g} > {bound:g}: "
        f"plain factors at rank {lower} used, within the same parameters"
    )
    return plain_factors(*basis.factors(weight, lower), dtype)._replace(fallbacks=(note,))


def plain_factors(a: Tensor, b: Tensor, dtype: torch.dtype) -> Stored:
    """Store A (m, k) and B (k, n), in float64, as they are; or equally large, if that loses more
    than digits: float16 holds no number above 65,504, and few digits of small ones.
    """
    stored = _plain(a, b, dtype)
    return stored if stored.rounding <= torch.finfo(dtype).eps else _plain(*_balanced(a, b), dtype)


def _plain(a: Tensor, b: Tensor, dtype: torch.dtype) -> Stored:
    tensors = {"down.weight": b.to(dtype), "up.weight": a.to(dtype)}
    return Stored("plain", a.shape[1], tensors, _rounding("plain", tensors, a, b), None, ())


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each column of A (m, k) and row of B (k, n), by a power of two, so that their largest
    numbers are alike. The product stays the same to the last bit.
    """
    quotient = b.abs().amax(1) / a.abs().amax(0)
    scale = (quotient.log2() / 2).round().nan_to_num(0.0, 0.0, 0.0).exp2()
    return a * scale, b / scale[:, None]


def rotated_rank(rank: int, out_features: int, in_features: int) -> int | None:
    """Return the rank of the rotated factors that a matrix (m, n) of a rank is stored as for
    rounding: a multiple of 32. None if they have no fewer numbers than the matrix multiplied out.
    """
    rounded = math.ceil(rank / _ROTATED) * _ROTATED
    fewer = rounded * (out_features + in_features) < out_features * in_features
    return rounded if fewer else None


def rotated_factors(a: Tensor, b: Tensor, dtype: torch.dtype, rank: int, seed: int) -> Stored:
    """Store A (m, k) B (k, n), in float64, as plain factors for rounding.

    They are A R^T and R B of an orthonormal B (LQ) and a random rotation R (rank, k), rank >= k: no
    number stands out, so that errors of rounding are small and alike, as in the incoherence
    processing of QuIP (arXiv 2307.13304, section 4). Here it costs nothing when the model runs.
    """
    q, r = torch.linalg.qr(b.T)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(drawn).Q[:, : b.shape[0]]
    return plain_factors(a @ r.T @ rotation.T, rotation @ q.T, dtype)


def whole(a: Tensor, b: Tensor, dtype: torch.dtype) -> Stored:
    """Store A (m, k) B (k, n), in float64, multiplied out."""
    exact = a @ b
    weight = exact.to(dtype)
    rounding = float((weight.double() - exact).norm() / exact.norm().clamp_min(1e-300))
    return Stored("dense", len(b), {"dense.weight": weight}, rounding, None, ())


def pivoted_factors(a: Tensor, b: Tensor, dtype: torch.dtype, columns: bool) -> Stored:
    """Store A (m, k) B (k, n), in float64, by k of its rows; or by k of its columns, which are the
    rows of its transpose B^T A^T.
    """
    pivoted = pivot(*((b.T, a.T) if columns else (a, b)))
    magnitude, order = pivoted.magnitude, pivoted.order
    rows, interpolation = pivoted.rows.to(dtype), pivoted.interpolation.to(dtype)
    del pivoted
    encoding: Encoding = "pivoted"
    tensors = {"down.weight": rows, "up.weight": interpolation, "order": order}
    if columns:
        encoding = "pivoted-columns"
        down, up = interpolation.T.contiguous(), rows.T.contiguous()
        tensors = {"down.weight": down, "up.weight": up, "order": order.argsort()}
    rounding = _rounding(encoding, tensors, a, b)
    return Stored(encoding, a.shape[1], tensors, rounding, magnitude, ())


def padded(left: Tensor, *shape: int) -> Tensor:
    """Return what is left of a weight or a bias without some neurons in its whole shape: those that
    are gone are the last ones, and zero, as their order does not matter.
    """
    more = [size - there for size, there in zip(shape, left.shape, strict=True)]
    return torch.nn.functional.pad(left, [n for end in reversed(more) for n in (0, end)])


def factors_of(encoding: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A (m, k) and B (k, n), in float64, of W' = A B that `tensors` store."""
    found = {name: tensor.double() for name, tensor in tensors.items() if name != "order"}
    up, down = found.get("up.weight"), found.get("down.weight")
    if encoding == "pivoted-columns" and up is not None:
        identity = torch.eye(up.shape[1]).to(up)
        spanning = identity if down is None else torch.cat([identity, down], dim=1)
        return up, spanning[:, tensors["order"].argsort()]
    if encoding == "pivoted" and down is not None:
        identity = torch.eye(len(down)).to(down)
        spanning = identity if up is None else torch.cat([identity, up])
        return spanning[tensors["order"]], down
    if up is None or down is None:
        raise ValueError(f"{sorted(tensors)} are no {encoding} factors")
    return up, down


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of what `tensors` store, whose order is integers."""
    return next(t.dtype for t in tensors.values() if t.is_floating_point())


def _as_small(loss: MatrixLoss, rank: int) -> int:
    """Return the rank of plain factors within the parameters of pivoted ones: on the matrix' grid,
    unless its lowest rank takes more.
    """
    budget = loss.matrix.stored_parameters("pivoted", rank)
    for ranks in (loss, loss._replace(multiple=1)):
        lower = rank_within(ranks, "plain", budget) or rank
        if loss.matrix.stored_parameters("plain", lower) <= budget:
            break
    return lower


def _rounding(encoding: Encoding, tensors: Mapping[str, Tensor], a: Tensor, b: Tensor) -> float:
    """Return ||A' B' - A B|| / ||A B||, of the factors that `tensors` store: a block of rows at a
    time.
    """
    error = energy = 0.0
    up, down = factors_of(encoding, tensors)
    for rows in row_blocks(len(a), b.shape[1]):
        block = a[rows] @ b
        energy += float(block.square().sum())
        error += float((up[rows] @ down - block).square().sum())
    return math.sqrt(error / max(energy, 1e-300))
