"""What a layer is called with beside its hidden states, and whether two such calls are the same."""

import inspect
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """The arguments of a layer beside its hidden states, for one shape of a batch."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


def by_name(call: Call, layer: nn.Module) -> dict[Any, Any]:
    """Return the arguments of a layer by their names, or number beyond those of its signature."""
    _, *known = inspect.signature(layer.forward).parameters  # after the hidden states
    names = itertools.chain(known, itertools.count())
    return dict(zip(names, call.positional, strict=False)) | call.named


def difference(call: Call, other: Call, layer: nn.Module) -> str:
    """Return the name of an argument of a layer that differs; empty if none does."""
    mine, theirs = (by_name(one, layer) for one in (call, other))
    names = [name for name in mine if name not in theirs or not same(mine[name], theirs[name])]
    return str(names[0]) if names else ""


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, tensors and numbers within them too."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return type(one) is type(other) and (not isinstance(one, (int, float, str)) or one == other)
