"""Factorising one matrix: ours against the recipes of SVD-LLM and SVD-LLM V2 as printed.

    python -m benchmarks.factorise

Everything from moments to the factors at one rank, in float64, on the same Gram. The optimum is the
same for all three, so the loss ||(W - W') C^1/2||^2 must be; exits with 1 if it differs by more
than 1e-6. `fisher` minimises another loss: its row is there for its time. What calibration gives is
not timed: X^T X for the papers, and for ours Y^T Y = W X^T X W^T where m <= n, else X^T X.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import interleave
from schemas.request.methods import Truncation
from workers.calibration.moments import Moment
from workers.truncation.problem import Problem

Factors = tuple[Tensor, Tensor]
TOLERANCE = 1e-6
OURS = "ours, input-only"
SAME_OPTIMUM = (OURS, "SVD-LLM (W)", "SVD-LLM V2")


class Case(NamedTuple):
    """W (m, n), C = X^T X / t (n, n), G = E[g g^T] (m, m), and a rank."""

    weight: Tensor
    gram: Tensor
    gradient: Tensor
    rank: int


def ours(case: Case, truncation: Truncation) -> Callable[[], Factors]:
    """Our factors, from the moments that our calibration takes."""
    W, C, G, rank = case
    on_output = W.shape[0] <= W.shape[1]
    forward = _moment(W @ C @ W.T if on_output else C)
    backward = _moment(G if on_output else W.T @ G @ W) if truncation == "fisher" else None
    return lambda: Problem(truncation, W, forward, backward, 0.1).basis().factors(W, rank)


def svd_llm(case: Case) -> Factors:
    """arXiv 2403.07378, Algorithms 1 and 2, as its published code: S, S^-1, SVD of W S."""
    W, C, _, rank = case
    S = torch.linalg.cholesky(C)
    S_inv = torch.linalg.inv(S)
    U, s, Vt = torch.linalg.svd(W @ S, full_matrices=False)
    root = s[:rank].sqrt().diag()
    return U[:, :rank] @ root, root @ (Vt[:rank] @ S_inv)


def svd_llm_v2(case: Case) -> Factors:
    """arXiv 2503.12340, Algorithm 2 with the inverse of its Theorem 3.1: SVD of C, then of D."""
    W, C, _, rank = case
    U_s, s_s, _ = torch.linalg.svd(C)
    M = U_s @ s_s.sqrt().diag()
    U, s, Vt = torch.linalg.svd(W @ M, full_matrices=False)
    root = s[:rank].sqrt().diag()
    return U[:, :rank] @ root, root @ (Vt[:rank] @ s_s.rsqrt().diag() @ U_s.T)


def loss(case: Case, factors: Factors) -> float:
    """||(W - W') C^1/2||^2."""
    a, b = factors
    error = case.weight - a @ b
    return float(((error @ case.gram) * error).sum())


def make_case(shape: str, ratio: float) -> Case:
    """A random W, correlated inputs and gradients, and the rank of plain factors at `ratio`."""
    out_features, in_features = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(out_features, in_features, generator=generator, dtype=torch.float64)
    stays = (1 - ratio) * out_features * in_features
    rank = int(stays / (out_features + in_features))
    return Case(W, _second_moment(in_features), _second_moment(out_features), rank)


def _second_moment(size: int) -> Tensor:
    """X^T X / t of t = 2 size rows whose coordinates are correlated and of decaying energy."""
    generator = torch.Generator().manual_seed(size)
    scale = torch.arange(1, size + 1, dtype=torch.float64).rsqrt()
    Z = torch.randn(2 * size, size, generator=generator, dtype=torch.float64) * scale
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    X = Z @ (mixing / math.sqrt(size))
    return X.T @ X / len(X)


def _moment(matrix: Tensor) -> Moment:
    return Moment(matrix, float(matrix.trace()), 2 * len(matrix))


def main() -> None:
    """Time and compare at every shape."""
    options = _parse()
    torch.set_num_threads(options.threads)
    table = Table(title=f"Moments to factors, float64, {options.threads} threads")
    for heading in ("m x n, rank", "recipe"):
        table.add_column(heading)
    for heading in ("seconds", "time / ours", "loss", "loss / ours - 1"):
        table.add_column(heading, justify="right")
    worst = 0.0
    for shape in options.shapes:
        case = make_case(shape, options.ratio)
        worst = max(worst, _compare(table, shape, case, options.rounds))
    Console(width=110).print(table)
    sys.exit(int(worst > TOLERANCE))


def _compare(table: Table, shape: str, case: Case, rounds: int) -> float:
    """Add the rows of one case; the greatest relative difference between losses."""
    timings = interleave(
        {
            OURS: ours(case, "input-only"),
            "SVD-LLM (W)": lambda: svd_llm(case),
            "SVD-LLM V2": lambda: svd_llm_v2(case),
            "ours, fisher": ours(case, "fisher"),
        },
        rounds,
    )
    losses = {name: loss(case, factors) for name, factors in timings.results.items()}
    for name, value in losses.items():
        table.add_row(
            f"{shape}, {case.rank}" if name == OURS else "",
            name,
            f"{timings.seconds(name):.2f}",
            f"{timings.ratio(name, OURS):.2f}",
            f"{value:.6e}",
            f"{value / losses[OURS] - 1:+.1e}",
        )
    table.add_section()
    return max(abs(losses[name] / losses[OURS] - 1) for name in SAME_OPTIMUM)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["1024x4096", "4096x1024", "2048x2048"])
    parser.add_argument("--ratio", type=float, default=0.2, help="removed, as plain factors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
