"""The problem of loss-aware ranks, stated independently: the multiple-choice knapsack."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from schemas.model.spec import Factors
from workers.allocation import MatrixLoss, Ranks


class Choice(NamedTuple):
    rank: int | None
    cost: int
    nats: float


def choice(loss: MatrixLoss, factors: Factors, rank: int | None) -> Choice:
    m, n = loss.matrix.out_features, loss.matrix.in_features
    if rank is None:
        return Choice(None, m * n, 0.0)
    cost = rank * (m + n - (rank if factors == "pivoted" else 0))
    return Choice(rank, cost, (loss.nats or 0.0) * math.fsum(loss.eigenvalues[rank:].tolist()))


def menu(loss: MatrixLoss, factors: Factors, least_cut: float = 0.0) -> list[Choice]:
    """Every rank on the grid that takes enough fewer parameters than the matrix, and dense."""
    limit = min(loss.matrix.out_features - 1, loss.matrix.in_features - 1, len(loss.eigenvalues))
    step = loss.multiple  # of matrices that are wide enough for it
    choices = [choice(loss, factors, rank) for rank in range(step, limit + 1, step)]
    dense = choice(loss, factors, None)
    most = (1 - least_cut) * dense.cost
    return [*(one for one in choices if one.cost < dense.cost and one.cost <= most), dense]


def measure(losses: Sequence[MatrixLoss], factors: Factors, found: Ranks) -> tuple[int, float]:
    """Parameters and nats of an allocation."""
    picked = [choice(loss, factors, found.ranks[loss.matrix.name]) for loss in losses]
    return sum(one.cost for one in picked), math.fsum(one.nats for one in picked)


def brute_force(
    losses: Sequence[MatrixLoss], factors: Factors, budget: int, least_cut: float = 0.0
) -> float:
    """The least nats of all combinations within the budget."""
    combinations = itertools.product(*(menu(loss, factors, least_cut) for loss in losses))
    return min(
        math.fsum(one.nats for one in combination)
        for combination in combinations
        if sum(one.cost for one in combination) <= budget
    )


def hull_edges(choices: list[Choice]) -> list[tuple[float, int, float]]:
    """Slope, cost and gain of the edges of the lower convex hull, steepest first."""
    edges = []
    at = choices[0]
    while rest := [one for one in choices if one.cost > at.cost]:
        slopes = [(at.nats - one.nats) / (one.cost - at.cost) for one in rest]
        slope = max(slopes)
        farthest = rest[max(i for i, s in enumerate(slopes) if s == slope)]
        edges.append((slope, farthest.cost - at.cost, at.nats - farthest.nats))
        at = farthest
    return edges


def critical_gain(
    losses: Sequence[MatrixLoss], factors: Factors, budget: int, least_cut: float = 0.0
) -> float:
    """Gain of the hull edge at which the budget runs out: no Lagrangian solution can be farther
    than that from the optimum (the multiple-choice knapsack bound, Sinha and Zoltners 1979).
    """
    menus = [menu(loss, factors, least_cut) for loss in losses]
    left = budget - sum(choices[0].cost for choices in menus)
    edges = sorted((edge for choices in menus for edge in hull_edges(choices)), reverse=True)
    for slope, cost, gain in edges:
        if cost > left:
            return max([gain, *(g for s, _, g in edges if math.isclose(s, slope))])
        left -= cost
    return 0.0
