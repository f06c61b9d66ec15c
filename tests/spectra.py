"""Matrices of every kind of spectrum, and the parameters that a ratio leaves of them."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from schemas.model.spec import Factors, MatrixSpec, Neurons
from workers.allocation import MatrixLoss

FACTORS: list[Factors] = ["plain", "pivoted"]


def matrix(
    index: int, out_features: int, in_features: int, path: str = "mlp.up_proj"
) -> MatrixSpec:
    return MatrixSpec(
        name=f"layers.{index}.{path}",
        layer=index,
        path=path,
        reads=path,
        stored=f"model.layers.{index}.{path}",
        out_features=out_features,
        in_features=in_features,
        bias=False,
    )


def mlp(index: int, count: int, hidden: int) -> Neurons:
    gate, up = (matrix(index, count, hidden, f"mlp.{name}_proj") for name in ("gate", "up"))
    down = matrix(index, hidden, count, "mlp.down_proj")
    own = [m.model_copy(update={"neurons": "mlp.down_proj"}) for m in (gate, up, down)]
    return Neurons(writers=(own[0], own[1]), reader=own[2])


def loss_of(
    spec: MatrixSpec, eigenvalues: Tensor, nats: float | None = 0.5, tokens: int = 1000
) -> MatrixLoss:
    return MatrixLoss(spec, eigenvalues.double(), nats, tokens)


def budget_of(losses: Sequence[MatrixLoss], ratio: float) -> int:
    """floor((1 - R) sum of m n), R being the decimal number that was written."""
    return math.floor((1 - Fraction(str(ratio))) * sum(loss.matrix.size for loss in losses))


def power(size: int, exponent: float, scale: float = 1.0) -> Tensor:
    return scale * torch.arange(1, size + 1, dtype=torch.float64) ** -exponent


def exponential(size: int, base: float, scale: float = 1.0) -> Tensor:
    return scale * base ** -torch.arange(size, dtype=torch.float64)


def steps(size: int, width: int, scale: float = 1.0) -> Tensor:
    """Plateaus of equal eigenvalues."""
    return scale * 10.0 ** -(torch.arange(size) // width).double()


def rough(size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Cubes of exponential noise: a few large, many small."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(size, generator=generator, dtype=torch.float64)
    return scale * (-noise.log()).pow(3).sort(descending=True).values


SHAPES = [(6, 6), (4, 9), (9, 4)]
SPECTRA: dict[str, Callable[[int, int], Tensor]] = {
    "power": lambda size, i: power(size, 0.5 + i),
    "exponential": lambda size, i: exponential(size, 2.0 + i),
    "equal": lambda size, i: power(size, 1.0),
    "flat": lambda size, i: torch.ones(size),
    "steps": lambda size, i: steps(size, 2, 10.0**i),
    "rough": rough,
    "tiny": lambda size, i: rough(size, i, 1e-30),
    "huge": lambda size, i: rough(size, i, 1e30),
    "tiny and huge": lambda size, i: rough(size, i, 10.0 ** (30 * (i - 1))),
    "denormal": lambda size, i: rough(size, i, 1e-290),
    "zero": lambda size, i: torch.zeros(size),
    "one zero": lambda size, i: rough(size, i) * (i != 1),
    "deficient": lambda size, i: rough(size, i)[: 1 + i],
    "rank one": lambda size, i: torch.ones(1),
}


def problem(kind: str) -> list[MatrixLoss]:
    return [
        loss_of(matrix(i, m, n), SPECTRA[kind](min(m, n), i), nats=0.5 / (1 + i % 2))
        for i, (m, n) in enumerate(SHAPES)
    ]


def group(path: str, scales: Sequence[float], size: int = 60) -> list[MatrixLoss]:
    return [
        loss_of(matrix(i, size, size, path), power(size, 1.0, scale), tokens=10_000)
        for i, scale in enumerate(scales)
    ]
