"""Layers with known moments, and the best that can be kept of them, in float64.

The oracle is Eckart-Young: the best rank-k W' under ||G^1/2 (W - W') C^1/2||_F comes from the SVD
of G^1/2 W C^1/2, its squared loss is the sum of the dropped squared singular values.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from schemas.request.methods import TRUNCATIONS as ROWS
from schemas.request.methods import Truncation
from workers.calibration.moments import Moment
from workers.truncation.basis import Basis
from workers.truncation.problem import Problem

SHAPES = [(12, 20), (16, 16), (20, 12)]
TRUNCATIONS: tuple[Truncation, ...] = tuple(n for n, row in ROWS.items() if not row.scaled)
"""Those that take whole moments."""
PAPERS: tuple[Truncation, ...] = ("svd-llm", "svd-llm-v2")
PLENTY = 10**6

# Both sides are float64 and rounding grows at most with the root of the condition number, 1e5.
EXACT = 1e-6
# What float64 leaves of a loss that is zero in exact arithmetic, as a part of the whole energy.
ROUNDING = 1e-12


class Layer(NamedTuple):
    """W (m, n), the second moments C (n, n) of its inputs and G (m, m) of its output gradients."""

    weight: Tensor
    inputs: Tensor
    gradients: Tensor

    def problem(
        self,
        truncation: Truncation,
        shrinkage: float = 0.1,
        tokens: int = PLENTY,
        gradient_tokens: int = PLENTY,
        input_shrinkage: float = 0.0,
    ) -> Problem:
        """As calibration would state it: moments of the smaller side, but X^T X for the papers'."""
        weight, inputs, gradients = self
        on_input = weight.shape[0] > weight.shape[1]
        forward = inputs if truncation in PAPERS or on_input else weight @ inputs @ weight.T
        backward = weight.T @ gradients @ weight if on_input else gradients
        return Problem(
            truncation=truncation,
            weight=weight,
            forward=Moment(forward, float(forward.trace()), tokens),
            backward=Moment(backward, float(gradients.trace()), gradient_tokens),
            shrinkage=shrinkage,
            input_shrinkage=input_shrinkage,
            features=None if on_input else Moment(inputs.diagonal()[None], 0.0, tokens),
        )

    def less_correlated(self, share: float) -> "Layer":
        """The same layer with C_s = (1 - s) C + s diag C as the moment of its inputs."""
        diagonal = self.inputs.diagonal().diag()
        return self._replace(inputs=(1 - share) * self.inputs + share * diagonal)

    def metric(self, truncation: Truncation, shrinkage: float = 0.1) -> Tensor:
        """G_s = (1 - s) G + s (tr G / m) I for fisher, else I."""
        size = self.weight.shape[0]
        identity = torch.eye(size, dtype=torch.float64)
        if truncation != "fisher":
            return identity
        mean = self.gradients.trace() / size
        return (1 - shrinkage) * self.gradients + shrinkage * mean * identity

    def squared_loss(self, metric: Tensor, written: Tensor) -> float:
        """||G_s^1/2 (W - W') C^1/2||_F^2."""
        error = root(metric) @ (self.weight - written) @ root(self.inputs)
        return float(error.square().sum())

    def optimal_losses(self, metric: Tensor) -> list[float]:
        """The least squared loss at rank 0, 1, ..., min(m, n)."""
        singular = torch.linalg.svdvals(root(metric) @ self.weight @ root(self.inputs))
        return tails(singular.square())

    def optimum(self, metric: Tensor, rank: int) -> Tensor:
        """W' = G_s^-1/2 [G_s^1/2 W C^1/2]_k C^-1/2, both moments definite."""
        left, right = root(metric), root(self.inputs)
        u, s, vt = torch.linalg.svd(left @ self.weight @ right, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        written: Tensor = torch.linalg.solve(left, best) @ torch.linalg.inv(right)
        return written


def tails(terms: Tensor) -> list[float]:
    """The sums of all but the first 0, 1, ..., q terms."""
    return [float(terms[k:].sum()) for k in range(len(terms) + 1)]


def root(moment: Tensor) -> Tensor:
    """The symmetric positive semi-definite root."""
    values, vectors = torch.linalg.eigh(moment)
    found: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return found


def gaussian(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def definite(seed: int, size: int, condition: float) -> Tensor:
    """Eigenvalues from 1 down to 1 / condition, in a random orthonormal basis."""
    vectors, _ = torch.linalg.qr(gaussian(seed, size, size))
    exponents = torch.linspace(0, 1, size, dtype=torch.float64)
    moment: Tensor = (vectors * condition**-exponents) @ vectors.T
    return moment


def layer(shape: tuple[int, int], condition: float = 1e4) -> Layer:
    """Definite moments of a given condition number, 1e3 for the gradients."""
    m, n = shape
    return Layer(gaussian(1, m, n), definite(2, n, condition), definite(3, m, 1e3))


def written(problem: Problem, basis: Basis, rank: int) -> Tensor:
    a, b = basis.factors(problem.weight, rank)
    assert a.shape[1] == b.shape[0] == rank
    return a @ b


def ranks(shape: tuple[int, int]) -> tuple[int, ...]:
    small = min(shape)
    return 1, small // 2, small - 1


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())
