"""Models that lack some neurons, and the same with zeros in their place."""

import copy
from typing import Any

import torch
from torch import Tensor

from runtime.configuration_lowrank import Matrix
from runtime.modeling_lowrank import replace_linears
from schemas.model.spec import ModelSpec, Neurons


def neurons_are_alone(subject: Any) -> None:
    """Without half of its neurons a model says what it says with zeros in their place, to 1e-5."""
    require_alone(subject.model, subject.inspected)


@torch.no_grad()
def require_alone(model: Any, spec: ModelSpec) -> None:
    """Fail unless every neuron of a model, if it has any, is computed from its own rows alone."""
    if not spec.neurons:
        return
    zeroed, smaller = copy.deepcopy(model), copy.deepcopy(model)
    there = dict(zeroed.base_model.named_modules())
    matrices: dict[str, Matrix] = {}
    left: dict[str, list[Tensor]] = {}
    for neurons in spec.neurons:
        kept = torch.arange(neurons.reader.layer, neurons.count, 2)
        matrices |= {m.name: Matrix(m.pruned, len(kept)) for m in neurons.matrices}
        left |= _zeroed(neurons, kept, there)
    split = {m.module: list(m.split) for m in spec.matrices if m.split and m.name in matrices}
    replace_linears(smaller.base_model, matrices, split)
    for name, tensors in left.items():
        dense = smaller.base_model.get_submodule(name).dense
        for old, new in zip(dense.parameters(), tensors, strict=True):
            assert old.shape == new.shape
            old.copy_(new)
    found, expected = _logits(smaller.eval()), _logits(zeroed)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def _zeroed(neurons: Neurons, kept: Tensor, there: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Make all neurons 0 but some; return weight and bias of each matrix without the others."""
    gone = torch.ones(neurons.count, dtype=torch.bool).index_fill(0, kept, value=False)
    left: dict[str, list[Tensor]] = {}
    for matrix in neurons.matrices:
        linear = there[matrix.module]
        weight = (linear.weight.T if matrix.transposed else linear.weight)[matrix.rows]
        bias = [] if linear.bias is None else [linear.bias[matrix.rows]]
        if matrix is neurons.reader:
            weight[:, gone] = 0
            left[matrix.name] = [weight[:, kept], *bias]
        else:
            for tensor in (weight, *bias):
                tensor[gone] = 0
            left[matrix.name] = [tensor[kept] for tensor in (weight, *bias)]
    return left


def _logits(model: Any) -> Tensor:
    """Logits (token, row, vocabulary) of two tokens that it writes, the second with a cache."""
    tokens = torch.arange(3, 21).view(2, 9)
    written = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        min_new_tokens=2,
        max_new_tokens=2,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(written.logits)
