"""Which linears of a layer hold several matrices as one, from the graph of a forward."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_configs import tiny_config
from workers.model.graph import readers_of, split_of
from workers.model.inspection import planned

Split = dict[str, tuple[int, ...]]
SPLIT: dict[str, Split] = {
    "phi3": {"self_attn.qkv_proj": (32, 16, 16), "mlp.gate_up_proj": (48, 48)},  # slices; chunk
    "glm4": {"mlp.gate_up_proj": (48, 48)},
    "gpt2": {"attn.c_attn": (32, 32, 32)},  # stored transposed
    "gpt_bigcode": {"attn.c_attn": (32, 8, 8)},
    "mpt": {"attn.Wqkv": (32, 32, 32)},
    "nemotron_h": {"mixer.in_proj": (64, 80, 4)},  # sizes of which some are 0
    "jamba": {"mamba.in_proj": (64, 64), "mamba.x_proj": (4, 8, 8)},  # along a turned dimension
    # What heads interleave, and what a head takes apart for itself, is one matrix.
    **{kind: {} for kind in ("bloom", "codegen", "falcon", "gemma", "gpt_neox", "gpt_oss")},
}


@pytest.mark.parametrize("kind", SPLIT)
def test_what_is_only_taken_apart_is_several_matrices(kind: str) -> None:
    spec = planned(json.loads(tiny_config(kind).to_json_string(use_diff=False)), kind, "F32")
    found = {m.path.rpartition(".")[0]: m.split for m in spec.matrices if m.split}
    assert found == SPLIT[kind]
    for path, rows in found.items():
        parts = [m for m in spec.matrices if m.path.startswith(f"{path}.")][: len(rows)]
        assert [m.name for m in parts] == [f"{parts[0].module}.{part}" for part in range(len(rows))]
        assert tuple(m.out_features for m in parts) == rows
        assert len({m.reads for m in parts}) == len({m.stored for m in parts}) == 1
        bounds = [(m.rows.start, m.rows.stop) for m in parts]
        assert [bounds[0][0], *(stop for _, stop in bounds)] == [
            sum(rows[:part]) for part in range(len(rows) + 1)
        ]


def _three(y: Tensor) -> Tensor:
    first, *others = y.chunk(3, -1)
    return first.sum() + others[0].sum() + others[1].sum()


class Slice(torch.autograd.Function):
    """Is not torch's own."""

    @staticmethod
    def forward(_: Any, y: Tensor) -> Tensor:
        return y.sum()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.mark.parametrize(
    ("reads", "split"),
    [
        (lambda y: y[..., :8].sum() + y[..., -4:].sum(), (8, 4)),
        (lambda y: y[..., 8:].sum() * y[..., :8].sum() * y[..., 8:].exp().sum(), (8, 4)),
        (_three, (4, 4, 4)),
        (lambda y: _three(y.clamp(-1, 1).double()), (4, 4, 4)),
        (lambda y: _three(y.flatten(0, 1).unsqueeze(0)), (4, 4, 4)),
        (lambda y: y.mT.split([4, 0, 8], 1)[0].sum(), (4, 8)),
        (lambda y: y[..., :8].sum() + y[..., 4:].sum(), ()),  # twice
        (lambda y: y[..., :8].sum(), ()),  # not all
        (lambda y: y[..., ::2].sum() + y[..., 1::2].sum(), ()),
        (lambda y: y[..., :8].sum() + y[..., 8:].sum() + y.sum(), ()),
        (lambda y: y[:, :8].sum() + y[:, 8:].sum(), ()),  # of tokens
        (lambda y: _three(y.mT), ()),
        (lambda y: _three(y.unflatten(-1, (2, 6))), ()),
        (lambda y: _three(y.view(2, 12, 1, 12)), ()),  # a head of its own
        (lambda y: y.sum(), ()),
        (Slice.apply, ()),
    ],
)
def test_parts_are_all_rows_each_once(
    reads: Callable[[Tensor], Tensor], split: tuple[int, ...]
) -> None:
    product = nn.Linear(5, 12)(torch.randn(2, 12, 5))
    assert split_of(product.grad_fn, 12, readers_of(reads(product))) == split
