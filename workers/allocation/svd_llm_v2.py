"""Ratios from losses within each type of matrix (SVD-LLM V2, arXiv 2503.12340, Algorithm 1)."""

import math
from collections import defaultdict

from schemas.model.spec import Factors
from workers.allocation.budget import MatrixLoss, Ranks, rank_within
from workers.allocation.uniform import uniform


def svd_llm_v2(
    losses: list[MatrixLoss], ratio: float, factors: Factors, max_ratio: float = 1.0
) -> Ranks:
    """r_i = |G| R (1 / log L_i) / sum_j (1 / log L_j) over the matrices G of one type.

    The paper's matrices of one type have one size. If sizes n differ, the mean of ratios is not
    what is removed, and r_i = sum_j n_j R (1 / log L_i) / sum_j (n_j / log L_j).

    L_i is the theoretical minimum loss ||(W - W') X||_F at the uniform ratio R, on the
    un-normalised Gram. The formula has no bound: a matrix with little loss may be asked to give up
    more than it has. Ratios are clipped to `max_ratio` (or R, if that is more; at most what
    leaves the lowest rank) and the excess is shared out again, recorded. If some L_i <= 1 the
    formula is undefined: that group gets the uniform ratio, recorded. At R = 0 nothing is cut.
    """
    if not ratio:
        return uniform(losses, ratio, factors)
    groups: defaultdict[str, list[MatrixLoss]] = defaultdict(list)
    for loss in losses:
        groups[loss.matrix.path].append(loss)
    ranks: dict[str, int | None] = {}
    fallbacks = []
    for path, group in groups.items():
        minima = [_theoretical_loss(loss, ratio, factors) for loss in group]
        if min(minima) > 1:
            most = max(max_ratio, ratio)
            caps = [
                min(most, 1 - loss.matrix.stored_parameters(factors, loss.grid) / loss.matrix.size)
                for loss in group
            ]
            ratios, notes = _share_out(
                group, [1 / math.log(value) for value in minima], ratio, caps
            )
            fallbacks += notes
        else:
            ratios = [ratio] * len(group)
            fallbacks.append(
                f"{path}: a theoretical loss of {min(minima):.3g} is not above 1, "
                "so its logarithm gives no ratio; uniform ratio used"
            )
        for loss, removed in zip(group, ratios, strict=True):
            budget = (1 - removed) * loss.matrix.size
            ranks[loss.matrix.name] = rank_within(loss, factors, budget)
    return Ranks(ranks, tuple(fallbacks))


def _theoretical_loss(loss: MatrixLoss, ratio: float, factors: Factors) -> float:
    rank = rank_within(loss, factors, (1 - ratio) * loss.matrix.size)
    dropped = 0.0 if rank is None else float(loss.tail()[rank])
    return math.sqrt(dropped * loss.tokens)


def _share_out(
    group: list[MatrixLoss], weights: list[float], ratio: float, caps: list[float]
) -> tuple[list[float], list[str]]:
    """Return ratios that go as `weights`, capped, and remove `ratio` of all; and every clip."""
    largest = max(loss.matrix.size for loss in group)
    sizes = [loss.matrix.size / largest for loss in group]  # 1, exactly, if they are equal
    ratios, notes = [0.0] * len(weights), []
    free = list(range(len(weights)))
    remaining = ratio * sum(sizes)
    while free:
        total = sum(weights[i] * sizes[i] for i in free)
        shares = {i: remaining * weights[i] / total for i in free}
        capped = [i for i in free if shares[i] > caps[i]]
        if not capped:
            for i in free:
                ratios[i] = shares[i]
            break
        for i in capped:
            ratios[i] = caps[i]
            remaining -= caps[i] * sizes[i]
            notes.append(
                f"{group[i].matrix.name}: a ratio of {shares[i]:.3g}, by its loss, "
                f"clipped to {caps[i]:.3g}"
            )
        free = [i for i in free if i not in capped]
    return ratios, notes
