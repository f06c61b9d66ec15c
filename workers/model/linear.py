"""A linear of a decoder layer, as a forward without values shows it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle


class Linear(NamedTuple):
    """A linear layer W (m, n) = (`out_features`, `in_features`) of a decoder layer.

    `path` is its name in the layer, `reads` the path of the first linear that receives the same
    tensor. The weight of a Conv1D is stored as (n, m): `transposed`. `ends` tells whether the
    layer adds its product to the result, and computes nothing else from it. If it only takes the
    product apart (q, k and v in one), `split` is how many rows each part has. If its product is the
    neurons of an MLP, or what they are made of, `neurons` is the path of the linear that reads
    them; that one has its own.
    """

    path: str
    out_features: int
    in_features: int
    bias: bool
    transposed: bool
    reads: str
    ends: bool
    split: tuple[int, ...]
    neurons: str = ""

    @property
    def parts(self) -> tuple[int, ...]:
        """How many rows each matrix has that it holds."""
        return self.split or (self.out_features,)

    def narrow(self, module: nn.Module) -> RemovableHandle:
        """Let the module that it is lack the last of its neurons: it does not write it, or takes it
        to be 0 where it reads them.
        """
        if self.neurons == self.path:
            return module.register_forward_pre_hook(_with_one_more)
        return module.register_forward_hook(self._without_the_last)

    def _without_the_last(self, _module: nn.Module, _given: object, product: Tensor) -> Tensor:
        parts: tuple[Tensor, ...] = product.split_with_sizes(self.parts, -1)
        return torch.cat([part[..., :-1] for part in parts], -1)


def _with_one_more(_module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return functional.pad(given[0], (0, 1)), *given[1:]
