"""Truncation by an oblique projection on the smaller side of W (this project's own method).

Minimises ||G_s^1/2 (W - W') C^1/2||_F over rank k, where C is the second moment of the layer's
inputs and G_s the second moment of the gradients at its output, shrunk toward the identity. With
G_s = I it is SVD-LLM's optimum, W' = U_k U_k^T W with U_k the top eigenvectors of W C W^T. No
inverse is taken.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workers.calibration.moments import Moment, row_blocks
from workers.truncation.basis import Basis, Through, positive_eigh
from workers.truncation.shrinkage import ledoit_wolf


class Root(NamedTuple):
    """A factor F with F F^T = a moment, and the fallbacks that it took."""

    factor: Float64[Tensor, "n q"]
    fallbacks: tuple[str, ...]


class Metric(NamedTuple):
    """What weighs an error of W (m, n): G_s (m, m) on its output side, if m <= n, else W^T G_s W
    (n, n) on its input side. `shrinkage` is the s of G_s; None if no gradient weighs.
    """

    matrix: Float64[Tensor, "small small"]
    on_input: bool
    shrinkage: float | None


class Weighing(NamedTuple):
    """The objective tr(metric E content E^T), E = I - projection, on one side of W.

    output side: content = W C W^T (m, m); W' = projection @ W.
    input side: content = C (n, n); W' = W @ projection.
    """

    metric: Metric
    content: Float64[Tensor, "small small"]


def metric_of(
    weight: Float[Tensor, "m n"],
    backward: Moment | None,
    shrinkage: float | None,
) -> Metric:
    """Return the metric of W (m, n), in float64.

    `backward` is the moment of g (m,), or of W^T g (n,) with the trace of g's; None stands for
    G_s = I. A `shrinkage` of None is chosen from the data (Ledoit and Wolf).
    """
    out_features, in_features = weight.shape
    on_input = out_features > in_features
    identity = _gram(weight) if on_input else torch.eye(out_features).to(weight).double()
    if backward is None or backward.matrix is None:
        return Metric(identity, on_input, None)
    target = backward.trace / out_features * identity
    if shrinkage is None:
        shrinkage = ledoit_wolf(backward, target)
    return Metric(torch.lerp(backward.matrix.double(), target, shrinkage), on_input, shrinkage)


def two_sided(problem: Weighing, root: Root | None) -> Basis:
    """The optimal basis of a `Weighing`; its eigenvalues are the terms of the objective.

    On the input side, `root` is `eigen_root(content)`, if the caller already has it.

    With F F^T = outer: V, S^2 = eigh(F^T inner F), lift = F V, own = inner F V / S^2. Then
    own^T lift = I, and the projection own_k lift_k^T (its transpose on the input side) is optimal.
    """
    (metric, on_input, shrinkage), content = problem
    factor, fallbacks = (root or eigen_root(content)) if on_input else root_of(metric)
    inner = metric if on_input else content
    values, vectors = positive_eigh(factor.T @ inner @ factor)
    lift = factor @ vectors
    own = inner @ lift / values
    through: Through = "left" if on_input else "right"
    left, right = (lift, own.T) if on_input else (own, lift.T)
    return Basis(values, left, right, through, fallbacks, shrinkage)


def achieved_loss(problem: Weighing, basis: Basis, rank: int) -> float:
    """tr(metric E content E^T) at a rank, from the factors and not from the eigenvalues."""
    (metric, *_), content = problem
    projection = basis.left[:, :rank].double() @ basis.right[:rank].double()
    error = torch.eye(metric.shape[0]).to(metric) - projection
    return float(((metric @ error) * (error @ content)).sum())


def eigen_root(moment: Float64[Tensor, "n n"]) -> Root:
    """F (n, q) with F F^T = moment (n, n), which may be singular."""
    values, vectors = positive_eigh(moment)
    deficient = moment.shape[0] - values.shape[0]
    note = f"at least {deficient} of {len(moment)} directions of the moment are empty"
    return Root(vectors * values.sqrt(), (note,) if deficient else ())


def root_of(metric: Float64[Tensor, "n n"]) -> Root:
    """F with F F^T = metric: Cholesky, or the eigen root (recorded) if metric is not definite."""
    factor, failed = torch.linalg.cholesky_ex(metric)
    if not int(failed):
        return Root(factor, ())
    factor, fallbacks = eigen_root(metric)
    return Root(factor, (*fallbacks, "gradient moment not positive definite: eigen root used"))


def _gram(weight: Float[Tensor, "m n"]) -> Float64[Tensor, "n n"]:
    """W^T W (n, n) in float64, a block of rows at a time."""
    total = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    for rows in row_blocks(*weight.shape):
        block = weight[rows].double()
        total.addmm_(block.T, block)
    return total
