"""One low-rank linear layer: the matrix that it stores, its gradients, and children that others
change.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from runtime.configuration_lowrank import BIASES, Matrix, tensor_shapes
from runtime.modeling_lowrank import LowRankLinear
from tests.low_rank import random_factors


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "matrix",
    [
        Matrix("plain", 3),
        Matrix("plain", 5),
        Matrix("pivoted", 1),
        Matrix("pivoted", 5),
        Matrix("pivoted-columns", 1),
        Matrix("pivoted-columns", 5),
        Matrix("dense", None),
        Matrix("pruned-rows", 3),
        Matrix("pruned-columns", 4),
    ],
)
@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_linear_is_the_matrix_it_stores(matrix: Matrix, bias: bool, shape: tuple[int, int]) -> None:
    reference = nn.Linear(shape[1], shape[0], bias=bias)
    layer = LowRankLinear(matrix, *shape, bias)
    tensors, weight = random_factors(matrix, reference)
    layer.load_state_dict(tensors)
    rows, columns = layer.out_features, layer.in_features
    x = torch.randn(2, 3, columns)

    left = weight[:rows, :columns]
    torch.testing.assert_close(layer(x), nn.functional.linear(x, left, layer.bias))
    torch.testing.assert_close(layer.weight, left)
    assert not weight[rows:].any()
    assert not weight[:, columns:].any()
    assert layer.shape == shape
    kept = {"pruned-rows": (matrix.rank, shape[1]), "pruned-columns": (shape[0], matrix.rank)}
    assert (rows, columns) == kept.get(matrix.encoding, shape)
    assert (layer.bias is not None) == bias
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == tensor_shapes(
        *matrix, *shape, bias
    )


@pytest.mark.parametrize("encoding", ["plain", "pivoted", "pivoted-columns", "dense"])
def test_the_weight_has_no_noise_of_the_bias(encoding: str) -> None:
    """In half precision a sum is rounded to the size of the bias."""
    matrix = Matrix(encoding, None if encoding == "dense" else 3)
    layer, bare = (LowRankLinear(matrix, 5, 7, bias=bias).bfloat16() for bias in (True, False))
    bare.load_state_dict(layer.state_dict(), strict=False)
    nn.init.constant_(layer.get_parameter(next(n for n in BIASES if n in layer.state_dict())), 30)
    assert torch.equal(layer.weight, bare.weight)
    layer.weight.sum().backward()  # type: ignore[no-untyped-call]
    kept = [name for name, p in layer.named_parameters() if p.grad is not None]
    assert not set(kept) & set(BIASES)
    assert kept


@pytest.mark.parametrize(
    ("encoding", "rank"),
    [
        ("plain", None),
        ("pivoted", 6),
        ("pivoted-columns", 6),
        ("plain", 0),
        ("dense", 3),
        ("pruned-rows", 8),
        ("pruned-columns", 6),
        ("pruned-rows", None),
        ("csr", 3),
    ],
)
def test_impossible_matrix_is_refused(encoding: str, rank: int | None) -> None:
    with pytest.raises(ValueError, match=r"shape \(7, 5\) cannot have encoding .* use "):
        tensor_shapes(encoding, rank, 7, 5, bias=False)


@pytest.mark.parametrize("tokens", [(), (1,), (2, 3)])
@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("encoding", ["pivoted", "pivoted-columns"])
def test_a_pivoted_linear_has_the_gradients_of_what_it_computes(
    encoding: str, rank: int, tokens: tuple[int, ...]
) -> None:
    layer = LowRankLinear(Matrix(encoding, rank), 5, 7, bias=True).double()
    tensors, _ = random_factors(Matrix(encoding, rank), nn.Linear(7, 5))
    layer.load_state_dict(tensors)
    x = torch.randn(*tokens, 7, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def output(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, named, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(output, (x, *parameters))
    y = layer(x)
    assert y.is_contiguous()  # attention kernels refuse other layouts, sums are slow on them


class _Adapted(nn.Module):
    """A child as PEFT leaves it: the linear layer in another module, which adds to its output."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y + x.sum(-1, keepdim=True)


class _Quantised(nn.Linear):
    """A child as quantisers leave it: a linear layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


def _adapted(child: nn.Linear) -> nn.Module:
    return _Adapted(child)


def _quantised(child: nn.Linear) -> nn.Module:
    new = _Quantised(child.in_features, child.out_features, bias=False)
    new.load_state_dict(child.state_dict())
    return new


def _hooked(child: nn.Linear) -> nn.Module:
    child.register_forward_hook(lambda _, args, y: y + args[0].sum(-1, keepdim=True))
    return child


@pytest.mark.parametrize("change", [_adapted, _quantised, _hooked])
@pytest.mark.parametrize("encoding", ["plain", "pivoted", "pivoted-columns"])
def test_children_that_others_change_take_effect(
    encoding: str, change: Callable[[nn.Linear], nn.Module]
) -> None:
    layer = LowRankLinear(Matrix(encoding, 3), 6, 7, bias=False)
    tensors, _ = random_factors(Matrix(encoding, 3), nn.Linear(7, 6, bias=False))
    layer.load_state_dict(tensors)
    x = torch.randn(4, 7)
    read = x
    if encoding == "pivoted-columns":
        pivots, read = x[:, tensors["order"][:3]], x[:, tensors["order"][3:]]
    z = read @ tensors["down.weight"].T + read.sum(-1, keepdim=True)
    if encoding == "pivoted-columns":
        z = pivots + z
    y = z @ tensors["up.weight"].T + z.sum(-1, keepdim=True)
    if encoding == "pivoted":
        y = torch.cat((z, y), -1)[:, tensors["order"]]
    for name in ("down", "up"):
        setattr(layer, name, change(getattr(layer, name)))
    torch.testing.assert_close(layer(x), y)
