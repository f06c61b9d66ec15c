"""Ranks from one global problem: least loss in nats under one budget (our default)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.model.spec import Factors, whole
from workers.allocation.budget import MatrixLoss, NeuronsLoss, Ranks

_BISECTIONS = 200


def loss_aware(
    losses: list[MatrixLoss],
    ratio: float,
    factors: Factors,
    neurons: Sequence[NeuronsLoss] = (),
    min_ratio: float = 0.0,
    one_width: bool = False,
) -> Ranks:
    """Minimise sum of nats(k_i) subject to sum of parameters(k_i) <= (1 - ratio) sum of m n.

    For a multiplier, each matrix takes its best choice among every rank on its grid and dense (the
    pivoted cost is concave in k, so marginal gains mislead), and matrices that share `neurons` take
    the better of their own choices and of fewer neurons; the multiplier is bisected; the rest of
    the budget is spent on the best steps that fit. A rank removes at least `min_ratio` of its
    matrix, so with 1 a matrix is dense, or loses neurons; with `one_width`, all MLPs that have as
    many neurons keep as many. Never over the budget. Raises ConfigError if the least of everything
    is over it.
    """
    groups = defaultdict[object, list[NeuronsLoss]](list)
    for loss in neurons:
        groups[loss.neurons.count if one_width else loss.neurons.name].append(loss)
    blocks = _blocks([_of_matrix(loss, factors, min_ratio) for loss in losses], groups.values())
    budget = whole((1 - ratio) * sum(loss.matrix.size for loss in losses))
    least = sum(menu.least for block in blocks for menu in block.smallest)
    if least > budget:
        raise ConfigError(
            f"ratio {ratio}: the least of all {len(losses)} matrices takes {least:,} parameters, "
            f"more than the {budget:,} that may stay; lower the ratio"
        )
    menus, picks = _bisect(blocks, budget)
    _spend(menus, picks, budget - _cost(menus, picks))
    chosen = [(menu, menu.ranks[pick]) for menu, pick in zip(menus, picks, strict=True)]
    return Ranks(
        {name: rank for menu, rank in chosen for name in menu.names},
        pruned=frozenset(
            name for menu, rank in chosen if menu.prunes and rank is not None for name in menu.names
        ),
    )


class _Menu(NamedTuple):
    """Choices of some matrices: c rising ranks, then dense; `costs` int64, `nats` float64: both
    (c + 1,). Several matrices have neurons in common, or as many: their rank is how many are kept.
    """

    names: tuple[str, ...]
    ranks: list[int | None]
    costs: Tensor
    nats: Tensor
    prunes: bool = False

    @property
    def least(self) -> int:
        """The fewest parameters."""
        return int(self.costs.min())

    def best(self, multiplier: float) -> tuple[int, float]:
        """Return the pick of the least price, nats + multiplier x parameters, and that price."""
        prices = self.nats + multiplier * self.costs.double()
        pick = int(prices.argmin())
        return pick, float(prices[pick])


class _Block(NamedTuple):
    """The ways to cut some matrices: menus to choose from, each alone."""

    ways: list[list[_Menu]]

    @property
    def smallest(self) -> list[_Menu]:
        """The way with the fewest parameters."""
        return min(self.ways, key=lambda way: sum(menu.least for menu in way))

    def best(self, multiplier: float) -> list[tuple[_Menu, int]]:
        """Return the way of the least price, with the picks of its menus."""
        ways = [[(menu, *menu.best(multiplier)) for menu in way] for way in self.ways]
        cheapest = min(ways, key=lambda way: sum(price for *_, price in way))
        return [(menu, pick) for menu, pick, _ in cheapest]


def _of_matrix(loss: MatrixLoss, factors: Factors, min_ratio: float) -> _Menu:
    matrix = loss.matrix
    if loss.nats is None:
        raise ConfigError(f"{matrix.name}: loss-aware allocation needs gradients")
    on_grid = range(loss.grid, loss.ranks + 1, loss.grid)
    priced = {k: matrix.stored_parameters(factors, k) for k in on_grid}
    most = min(whole((1 - min_ratio) * matrix.size), matrix.size - 1)
    worth = [k for k, price in priced.items() if price <= most]
    tail = loss.nats * loss.tail()
    return _Menu(
        (matrix.name,),
        [*worth, None],
        torch.tensor([*(priced[k] for k in worth), matrix.size]),
        torch.cat([tail[worth], tail.new_zeros(1)]),
    )


def _of_neurons(losses: Sequence[NeuronsLoss]) -> _Menu:
    count, grid = losses[0].neurons.count, losses[0].grid
    least = count - min(len(loss.losses) for loss in losses)
    kept = [k for k in range(grid, count, grid) if k >= least]
    gone = torch.tensor([count - k for k in kept], dtype=torch.long)
    costs = [sum(loss.neurons.parameters(k) for loss in losses) for k in (*kept, count)]
    nats = torch.stack([loss.nats * loss.losses[gone - 1] for loss in losses]).sum(0)
    return _Menu(
        tuple(matrix.name for loss in losses for matrix in loss.neurons.matrices),
        [*kept, None],
        torch.tensor(costs),
        torch.cat([nats, nats.new_zeros(1)]),
        prunes=True,
    )


def _blocks(menus: list[_Menu], groups: Iterable[Sequence[NeuronsLoss]]) -> list[_Block]:
    """Put the menus of matrices that share neurons beside that of the neurons."""
    alone = {menu.names[0]: menu for menu in menus}
    blocks = []
    for losses in groups:
        menu = _of_neurons(losses)
        blocks.append(_Block([[alone.pop(name) for name in menu.names], [menu]]))
    return [*(_Block([[menu]]) for menu in alone.values()), *blocks]


def _bisect(blocks: list[_Block], budget: int) -> tuple[list[_Menu], list[int]]:
    """Return menus, and their picks, of the least multiplier (to rounding) within the budget."""
    high = sum(float(menu.nats[0]) for block in blocks for menu in block.ways[0]) + 1.0
    low = 0.0
    menus = [menu for block in blocks for menu in block.smallest]
    picks = [int(menu.costs.argmin()) for menu in menus]
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low else high / 16
        found = [choice for block in blocks for choice in block.best(middle)]
        if sum(int(menu.costs[pick]) for menu, pick in found) <= budget:
            menus, picks = [menu for menu, _ in found], [pick for _, pick in found]
            high = middle
        else:
            low = middle
        if low and high / low < 1 + 1e-12:
            break
    return menus, picks


def _cost(menus: list[_Menu], picks: list[int]) -> int:
    return sum(int(menu.costs[pick]) for menu, pick in zip(menus, picks, strict=True))


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
