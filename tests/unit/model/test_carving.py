"""What holds of a model of any kind that is cut into its layers."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from schemas.errors import CheckpointError
from schemas.model.architectures import ARCHITECTURES
from tests.kinds import KINDS, TEXT_DEPENDENT, causal_class, tiny_causal_model, tiny_config
from workers.model.anatomy import Anatomy, Linear, describe
from workers.model.carving import Carved, layer_list


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return tiny_causal_model(kind)


@pytest.fixture(scope="module")
def anatomy(kind: str) -> Anatomy:
    return describe(causal_class(kind), tiny_config(kind))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_the_layers_one_by_one_are_the_whole_model(
    model: Any, anatomy: Anatomy, tokens: Tensor
) -> None:
    """To the last bit; arguments of the layers were recorded on another text."""
    carved = Carved(model, anatomy.tuples)
    other = torch.full_like(tokens, 5)
    with torch.no_grad():
        calls = carved.record(other)
        hidden = carved.embed(tokens)
        for index, call in enumerate(calls):
            hidden = carved.layer(index, hidden, call)
        logits = carved.tail(hidden, other)
        whole = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(logits, whole)
    assert list(layer_list(model).modules) == list(carved.layers)  # as they were before


@pytest.mark.slow
def test_gradients_go_through_it(model: Any, anatomy: Anatomy, tokens: Tensor) -> None:
    """The gradient at the embedding is that of the whole model."""
    carved = Carved(model, anatomy.tuples)
    with torch.no_grad():
        calls, first = carved.record(tokens), carved.embed(tokens)
    hidden = first.clone().requires_grad_()
    after = hidden
    for index, call in enumerate(calls):
        after = carved.layer(index, after, call)
    (gradient,) = torch.autograd.grad(carved.tail(after, tokens).square().sum(), hidden)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@contextlib.contextmanager
def observing(
    layer: nn.Module, linears: tuple[Linear, ...], inputs: dict[str, Tensor]
) -> Iterator[None]:
    """Keep what each linear of a layer is given first."""

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs.setdefault(path, given[0].detach())

        return hook

    modules = [(one.path, layer.get_submodule(one.path)) for one in linears]
    hooks = [module.register_forward_pre_hook(keep(path)) for path, module in modules]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.slow
def test_its_linears_are_those_that_the_model_calls(
    model: Any, anatomy: Anatomy, tokens: Tensor
) -> None:
    """Found without weights: every shape, and which of them read the same values."""
    for layer, found in zip(layer_list(model).modules, anatomy.linears, strict=True):
        inputs: dict[str, Tensor] = {}

        with observing(layer, found, inputs), torch.no_grad():
            model(input_ids=tokens, use_cache=False)
        for linear in found:
            weight: Any = layer.get_submodule(linear.path).weight
            shape = (linear.out_features, linear.in_features)
            assert tuple(weight.T.shape if linear.transposed else weight.shape) == shape
            mine = inputs[linear.path].reshape(-1, linear.in_features)
            assert torch.equal(mine, inputs[linear.reads].reshape(mine.shape))


@pytest.mark.slow
def test_what_ends_a_layer_is_only_added(model: Any, anatomy: Anatomy, tokens: Tensor) -> None:
    """The gradient before the layer does not depend on the values of that product."""
    carved = Carved(model, anatomy.tuples)
    with torch.no_grad():
        calls, first = carved.record(tokens), carved.embed(tokens)
    for index, linears in enumerate(anatomy.linears):
        for path in [linear.path for linear in linears if linear.ends]:
            expected = _gradient(carved, index, first, calls[index])
            linear = carved.layers[index].get_submodule(path)
            hook = linear.register_forward_hook(lambda _m, _i, product: product + 1.0)
            changed = _gradient(carved, index, first, calls[index])
            hook.remove()
            assert torch.equal(changed, expected)


def _gradient(carved: Carved, index: int, hidden: Tensor, call: Any) -> Tensor:
    before = hidden.clone().requires_grad_()
    output = carved.layer(index, before, call)
    (found,) = torch.autograd.grad(output.sum(), before)
    return found


@pytest.mark.parametrize("kind", [name for name, row in ARCHITECTURES.items() if not row.planned])
def test_it_finds_what_the_table_says(kind: str) -> None:
    anatomy = describe(causal_class(kind), tiny_config(kind))
    row = ARCHITECTURES[kind]
    for linears in anatomy.linears:
        assert [linear.path for linear in linears] == [target.path for target in row.targets]
        groups = {linear.path: linear.reads for linear in linears}
        table = {target.path: target.reads for target in row.targets}
        for path in groups:
            same = {other for other in groups if groups[other] == groups[path]}
            assert same == {other for other in table if table[other] == table[path]}
        assert [linear.path for linear in linears if linear.ends] == [row.end]


@pytest.mark.parametrize(("kind", "argument"), TEXT_DEPENDENT.items())
def test_what_depends_on_the_text_is_refused(kind: str, argument: str, tokens: Tensor) -> None:
    model = tiny_causal_model(kind)
    carved = Carved(model, describe(causal_class(kind), model.config).tuples)
    with pytest.raises(
        CheckpointError, match=f"argument {argument} of layer 0 depends on the text"
    ):
        carved.record(tokens)


def test_a_model_that_does_not_call_its_layers_is_refused() -> None:
    class Idle(LlamaForCausalLM):  # type: ignore[no-untyped-call]
        def forward(self, **_: Any) -> None:
            return None

    with pytest.raises(CheckpointError, match="it does not call all its layers"):
        describe(Idle, tiny_config("llama"))


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = tiny_causal_model("llama")
    model.other = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(CheckpointError, match=r"one list of 3 layers.*model\.layers, other"):
        layer_list(model)
