"""Ranks from one global problem: least loss in nats under one budget (our default)."""

import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model.spec import Factors, whole
from workers.allocation.budget import MatrixLoss, Ranks

_BISECTIONS = 200


def loss_aware(losses: list[MatrixLoss], ratio: float, factors: Factors) -> Ranks:
    """Minimise sum of nats(k_i) subject to sum of parameters(k_i) <= (1 - ratio) sum of m n.

    For a multiplier, each matrix takes its best choice among every rank on its grid and dense (the
    pivoted cost is concave in k, so marginal gains mislead); the multiplier is bisected; the rest
    of the budget is spent on the best steps that fit. Never over the budget. Raises ConfigError if
    the lowest rank everywhere is over it.
    """
    menus = [_Menu(loss, factors) for loss in losses]
    budget = whole((1 - ratio) * sum(loss.matrix.size for loss in losses))
    least = sum(int(menu.costs.min()) for menu in menus)
    if least > budget:
        raise ConfigError(
            f"ratio {ratio}: the lowest rank in all {len(losses)} matrices takes {least:,} "
            f"parameters, more than the {budget:,} that may stay; lower the ratio"
        )
    picks = _bisect(menus, budget)
    _spend(menus, picks, budget - sum(int(m.costs[p]) for m, p in zip(menus, picks, strict=True)))
    return Ranks({menu.name: menu.rank(pick) for menu, pick in zip(menus, picks, strict=True)})


class _Menu:
    """Choices of a matrix: c rising ranks, then dense. `costs` int64, `nats` float64: (c + 1,)."""

    def __init__(self, loss: MatrixLoss, factors: Factors) -> None:
        matrix = loss.matrix
        if loss.nats is None:
            raise ConfigError(f"{matrix.name}: loss-aware allocation needs gradients")
        self.name = matrix.name
        on_grid = range(loss.grid, loss.ranks + 1, loss.grid)
        priced = {k: matrix.stored_parameters(factors, k) for k in on_grid}
        self._ranks = [k for k, price in priced.items() if price < matrix.size]
        self.costs = torch.tensor([*(priced[k] for k in self._ranks), matrix.size])
        tail = loss.nats * loss.tail()
        self.nats = torch.cat([tail[self._ranks], tail.new_zeros(1)])

    def rank(self, pick: int) -> int | None:
        return None if pick == len(self._ranks) else self._ranks[pick]

    def best(self, multiplier: float) -> int:
        return int((self.nats + multiplier * self.costs.double()).argmin())


def _bisect(menus: list[_Menu], budget: int) -> list[int]:
    """Return the picks of the least multiplier (to rounding) that stay within the budget."""
    scale = sum(float(menu.nats[0]) for menu in menus) + 1.0
    low, high = 0.0, scale
    best = [int(menu.costs.argmin()) for menu in menus]
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low else high / 16
        picks = [menu.best(middle) for menu in menus]
        if sum(int(m.costs[p]) for m, p in zip(menus, picks, strict=True)) <= budget:
            best, high = picks, middle
        else:
            low = middle
        if low and high / low < 1 + 1e-12:
            break
    return best


def _spend(menus: list[_Menu], picks: list[int], left: int) -> None:
    """Raise picks in place, best nats per parameter first, while a step fits in `left`.

    When no step gains any more, matrices that lack full rank on the calibration text are made dense
    if they fit, for the sake of other text.
    """
    while True:
        steps = [_best_step(menu, pick, left) for menu, pick in zip(menus, picks, strict=True)]
        found = [(gain, i, pick) for i, (gain, pick) in enumerate(steps) if gain > 0]
        if not found:
            break
        _, i, pick = max(found)
        left -= int(menus[i].costs[pick] - menus[i].costs[picks[i]])
        picks[i] = pick
    for i, menu in enumerate(menus):
        extra = int(menu.costs[-1] - menu.costs[picks[i]])
        if extra <= left:
            left -= extra
            picks[i] = len(menu.costs) - 1


def _best_step(menu: _Menu, pick: int, left: int) -> tuple[float, int]:
    """Return the affordable dearer pick with the most nats per parameter, and those (0: none)."""
    extra: Tensor = menu.costs - menu.costs[pick]
    gain = (menu.nats[pick] - menu.nats) / extra.clamp(min=1)
    gain[(extra <= 0) | (extra > left)] = 0.0
    best = int(gain.argmax())
    return float(gain[best]), best
