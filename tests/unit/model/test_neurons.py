"""Which linears of a layer write neurons, and which one reads them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.activations import ACT2FN

from schemas.model.spec import TensorSpec
from tests.kinds import tiny_causal_model
from tests.neurons import require_alone
from tests.tiny_configs import tiny_config
from workers.model.anatomy import describe
from workers.model.description import Description
from workers.model.graph import readers_of, written_by
from workers.model.inspection import planned

Made = Callable[[Tensor, Tensor], Tensor]


class Doubled(torch.autograd.Function):
    """Is not torch's own, and takes each number alone."""

    @staticmethod
    def forward(_: Any, y: Tensor) -> Tensor:
        return 2 * y

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Mul(torch.autograd.Function):
    """Is not torch's own either, and computes something else than its name says."""

    @staticmethod
    def forward(_: Any, y: Tensor) -> Tensor:
        return y.cumsum(-1)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def _by(function: Any, y: Tensor) -> Tensor:
    made: Tensor = function.apply(y)
    return made


MADE: dict[str, tuple[Made, int]] = {
    "read twice": (lambda a, _: a * a.exp(), 1),
    "as it is": (lambda a, _: a, 1),
    "by a function": (lambda a, _: _by(Doubled, a), 1),
    "of parts": (lambda a, b: a[..., :6] * a[..., 6:] * b[..., :6], 2),
    "by a function that sums": (lambda a, _: _by(Mul, a), 0),
    "norm in steps": (lambda a, _: a * a.pow(2).mean(-1, keepdim=True).rsqrt(), 0),
    "turned": (lambda a, _: a.mT, 0),
    "part of a turned one": (lambda a, _: a.mT[..., :6], 0),
    "scaled by a number": (lambda a, _: a * torch.ones(1, requires_grad=True), 1),
    "scaled": (lambda a, _: a * torch.ones(12, requires_grad=True), 0),
}


@pytest.mark.parametrize("made", MADE)
def test_neurons_are_products_that_meet_element_by_element(made: str) -> None:
    products = [nn.Linear(5, 12)(torch.randn(2, 12, 5)) for _ in range(2)]
    make, count = MADE[made]
    h = make(*products)
    nodes = [product.grad_fn for product in products]
    assert written_by(h, readers_of(h.clone()), {*nodes}) == {*nodes[:count]}


# prelu may have a slope for each neuron.
@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu"}))
def test_any_activation_of_transformers_takes_each_neuron_alone(name: str) -> None:
    product = nn.Linear(5, 12)(torch.randn(2, 12, 5))
    h = ACT2FN[name](product)
    assert written_by(h, readers_of(h.clone()), {product.grad_fn}) == {product.grad_fn}


def test_what_the_layer_reads_too_is_no_neuron() -> None:
    product = nn.Linear(5, 12)(torch.randn(2, 12, 5))
    h = product.tanh()
    assert written_by(h, readers_of(h + h.sum()), {product.grad_fn}) == set()


class Changed(nn.Module):
    """Adds to a product in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += x
        z: Tensor = self.last(y)
        return z


class Taken(nn.Module):
    """Takes apart what reads the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 48), nn.Linear(48, 64)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(self.first(x).relu())
        return z[..., :32] * z[..., 32:]


class Sized(nn.Module):
    """Has a size of its own, by which it takes a product apart."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.last = nn.Linear(32, 96), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.two(x).split(48, -1)
        z: Tensor = self.last(a * b)
        return z


class Shifted(nn.Module):
    """Has a number of its own for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 48), nn.Linear(48, 32)
        self.register_buffer("shift", torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last((self.first(x) + self.shift).relu())
        return z


class Three(nn.Sequential):
    """The second of three reads neurons, so that it writes none."""

    def __init__(self) -> None:
        first, second, third = nn.Linear(32, 48), nn.Linear(48, 48), nn.Linear(48, 32)
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), third)


@pytest.mark.parametrize(
    ("mlp", "neurons"),
    [
        (Three, {"mlp.0": "mlp.2", "mlp.2": "mlp.2"}),
        *((mlp, {}) for mlp in (Changed, Taken, Sized, Shifted)),
    ],
)
def test_neurons_of_layers_that_no_kind_has(
    mlp: Callable[[], nn.Module], neurons: dict[str, str]
) -> None:
    config: Any = tiny_config("llama")
    with torch.device("meta"):
        made: Any = LlamaForCausalLM(config)
        made.model.layers[1].mlp = mlp()
    found = describe(made.to(torch.bfloat16).eval()).linears[1]
    assert {linear.path: linear.neurons for linear in found if linear.neurons} == neurons


@pytest.mark.parametrize("absent", ["gate_proj", "up_proj", "down_proj"])
def test_neurons_need_all_their_matrices_as_the_files_hold_them(absent: str) -> None:
    """Code of transformers may make one of several tensors."""
    content = json.loads(tiny_config("llama").to_json_string(use_diff=False))
    model = Description(content, "config.json")
    model.placed(
        TensorSpec(name=name, file="", dtype="F32", shape=tuple(tensor.shape))
        for name, tensor in model.state.items()
        if name != f"model.layers.1.mlp.{absent}.weight"
    )
    found = [matrix for matrix in model.matrices() if matrix.neurons]
    assert {matrix.layer for matrix in found} == {0, 2}


FEW = {
    "llama": "mlp.gate_proj, mlp.up_proj -> mlp.down_proj",
    "phi3": "mlp.gate_up_proj.0, mlp.gate_up_proj.1 -> mlp.down_proj",  # of one matrix
    "gpt2": "mlp.c_fc -> mlp.c_proj",  # stored transposed
    "opt": "fc1 -> fc2",
    "bloom": "mlp.dense_h_to_4h -> mlp.dense_4h_to_h",  # whose activation is a function of its own
    "apertus": "mlp.up_proj -> mlp.down_proj",  # and has parameters
    "gpt_neox": "mlp.dense_h_to_4h -> mlp.dense_4h_to_h",
    "cohere": "mlp.gate_proj, mlp.up_proj -> mlp.down_proj",  # beside attention
    "gemma2": "mlp.gate_proj, mlp.up_proj -> mlp.down_proj",
    "qwen2_moe": "mlp.shared_expert.gate_proj, mlp.shared_expert.up_proj -> "
    "mlp.shared_expert.down_proj",
    "bamba": "feed_forward.gate_proj, feed_forward.up_proj -> feed_forward.down_proj",
    # A norm between; routed experts; no MLP.
    **dict.fromkeys(("bitnet", "kosmos-2.5", "mixtral", "mamba2"), ""),
}


@pytest.mark.parametrize("kind", FEW)
def test_neurons_of_a_kind(kind: str) -> None:
    spec = planned(json.loads(tiny_config(kind).to_json_string(use_diff=False)), kind, "F32")
    found = {
        f"{', '.join(sorted(writer.path for writer in one.writers))} -> {one.reader.path}"
        for one in spec.neurons
    }
    assert found == ({FEW[kind]} if FEW[kind] else set())


def test_neurons_of_a_kind_that_no_other_test_has_are_alone() -> None:
    spec = planned(json.loads(tiny_config("bamba").to_json_string(use_diff=False)), "bamba", "F32")
    require_alone(tiny_causal_model("bamba"), spec)
