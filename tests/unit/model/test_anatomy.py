"""Which linears of a layer make the neurons of an MLP, from the graph of a forward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.model.anatomy import _linears, _Observed
from workers.model.graph import readers_of

Between = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the product of the first linear to what the second one receives, and what else is read."""
_NOTHING = torch.zeros(())


def neurons(rows: int, between: Between) -> set[str]:
    """What is found of linears with so many rows, and 8 columns."""
    up, down = nn.Linear(6, rows), nn.Linear(8, 6)
    x = torch.randn(2, 5, 6, requires_grad=True)
    product = up(x)
    given, rest = between(product)
    result = down(given)
    observed = {"up": _Observed(up, x, product, product.grad_fn)}
    observed["down"] = _Observed(down, given, result, result.grad_fn)
    return {linear.neurons for linear in _linears(observed, readers_of(result + rest.sum()))}


ALONE: dict[str, tuple[int, Between]] = {
    "an activation": (8, lambda y: (functional.silu(y), _NOTHING)),
    "products": (8, lambda y: (y * torch.tanh(y + 1), _NOTHING)),
    "slices": (16, lambda y: (functional.silu(y[..., :8]) * y[..., 8:], _NOTHING)),
    "chunks": (16, lambda y: (torch.mul(*y.chunk(2, -1)), _NOTHING)),
}
MIXED: dict[str, tuple[int, Between]] = {
    "a norm": (8, lambda y: (functional.layer_norm(y, (8,)), _NOTHING)),
    "a turn": (8, lambda y: (functional.silu(y.roll(1, -1)), _NOTHING)),
    "a softmax": (8, lambda y: (y.softmax(-1), _NOTHING)),
    "a mean": (8, lambda y: (y * y.mean(-1, keepdim=True), _NOTHING)),
    "read elsewhere": (8, lambda y: (functional.silu(y), y)),
    "a part read elsewhere": (24, lambda y: (y[..., :8] * y[..., 8:16], y[..., 16:])),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_lies_between_element_by_element_is_neurons(case: str) -> None:
    assert neurons(*ALONE[case]) == {"down"}


@pytest.mark.parametrize("case", MIXED)
def test_what_mixes_them_or_is_read_elsewhere_is_none(case: str) -> None:
    assert neurons(*MIXED[case]) == {""}
