"""The linear layers of any decoder, found by a forward on the meta device: no weight is read.

The forward tells which linears a layer calls and with which shapes, which of them receive the same
tensor (q, k and v; gate and up; in some families attention and MLP together) and so share a moment,
and whether a layer returns a tuple.
"""

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from schemas.errors import CheckpointError
from workers.model.arguments import Call, by_name
from workers.model.carving import hidden_states, layer_list
from workers.model.graph import Readers, is_only_added, readers_of, split_of, written_by
from workers.model.kernels import torch_alone
from workers.model.linear import Linear

_TOKENS = 12  # more than any kernel of a convolution; sliding windows do not matter to shapes
_WITHHELD = object()  # in the place of what an earlier layer returns beside its hidden states


class Anatomy(NamedTuple):
    """A model: the path of its list of layers; for each layer its linears, in the order of calls,
    and whether it returns a tuple; the modules outside the layers that text goes through.
    """

    path: str
    linears: tuple[tuple[Linear, ...], ...]
    tuples: tuple[bool, ...]
    outside: frozenset[str]

    def without_neurons(self) -> "Anatomy":
        """Return the same of a model that keeps all its neurons."""
        kept = (tuple(one._replace(neurons="") for one in layer) for layer in self.linears)
        return self._replace(linears=tuple(kept))


def describe(model: PreTrainedModel) -> Anatomy:
    """Describe a model on the meta device, in bfloat16, which grouped experts need there. It has
    no neurons if its layers do not run with one fewer of each.

    Raises CheckpointError if its forward cannot run without values, or if layers share more than
    hidden states.
    """
    path, layers = layer_list(model)
    refused: list[str] = []
    for enabled in (True, False):  # some kinds run on meta without gradients only
        for mask in (_mask(), None):  # and some make their own mask there, others cannot
            seen = _Seen(model, path, layers)
            refused.append(seen.forward(model, enabled, mask))
            if seen.complete:  # even if what follows the layers cannot run there
                found, fewer = seen.found(), _Seen(model, path, layers)
                with _narrowed(layers, found.linears):
                    fewer.forward(model, False, mask)  # without gradients it is faster
                return found if fewer.complete else found.without_neurons()
    raise CheckpointError(
        f"model_type {model.config.model_type!r}: {refused[0]}; if config.json is as published, "
        "this kind cannot be compressed"
    )


def _mask() -> Tensor:
    """Return a mask (batch, 1, tokens, tokens) to add to scores, which all kinds take as it is."""
    return torch.zeros(2, 1, _TOKENS, _TOKENS, dtype=torch.bfloat16, device="meta")


@contextlib.contextmanager
def _narrowed(layers: nn.ModuleList, linears: tuple[tuple[Linear, ...], ...]) -> Iterator[None]:
    """Let all neurons be one fewer, so that a layer fails whose code needs as many as there are."""
    with contextlib.ExitStack() as hooks:
        for layer, mine in zip(layers, linears, strict=True):
            for linear in mine:
                if linear.neurons:
                    hooks.callback(linear.narrow(layer.get_submodule(linear.path)).remove)
        yield


class _Observed(NamedTuple):
    """What a linear received and gave. Both are kept, so that their identities stay theirs; `node`
    computes what it gave, before a layer changes that in place.
    """

    module: nn.Module
    given: Tensor
    product: Tensor
    node: Any


class _Seen:
    """What one forward shows of a model with a list of layers."""

    def __init__(self, model: PreTrainedModel, path: str, layers: nn.ModuleList) -> None:
        self._path, self._layers, self._kind = path, layers, model.config.model_type
        self._others = {
            module: name for name, module in model.named_modules() if not is_below(name, path)
        }
        self._linears: list[dict[str, _Observed]] = [{} for _ in layers]
        self._repeated: set[tuple[int, str]] = set()  # called more than once: not one product
        self._outputs: dict[int, Any] = {}
        self._beside: dict[int, int] = {}  # which layer returned what, but for hidden states, by id
        self._given: list[str] = []  # what of that the present layer is called with
        self._outside: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether every layer has returned."""
        return len(self._outputs) == len(self._layers)

    def forward(self, model: PreTrainedModel, enabled: bool, mask: Tensor | None) -> str:
        """Run one, with gradients or without, and say what stopped it."""
        tokens = torch.zeros(2, _TOKENS, dtype=torch.long, device="meta")
        try:
            with torch.set_grad_enabled(enabled), torch_alone(), self._observing():
                model(input_ids=tokens, attention_mask=mask, use_cache=False)
        except Exception as error:  # noqa: BLE001 (a model may raise anything)
            if self._given:
                return f"it cannot be cut into layers: {', '.join(self._given)}"
            return f"its forward cannot run without values ({type(error).__name__}: {error})"
        return "it does not call all its layers"  # unless it did

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """Watch a forward."""
        hooks = [module.register_forward_pre_hook(self._on_other) for module in self._others]
        for index, layer in enumerate(self._layers):
            before: Any = partial(self._before_layer, index)
            hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(layer.register_forward_hook(partial(self._on_layer, index)))
            for path, module in layer.named_modules():
                if is_plain(module):
                    hook = partial(self._on_linear, index, path)
                    hooks.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def found(self) -> Anatomy:
        """Describe the model."""
        outputs = [self._outputs[index] for index in range(len(self._layers))]
        readers = [readers_of(hidden_states(output)) for output in outputs]
        self._require_apart(readers)
        for index, path in self._repeated:
            del self._linears[index][path]
        tuples = tuple(isinstance(output, (tuple, list)) for output in outputs)
        linears = tuple(map(_linears, self._linears, readers))
        return Anatomy(self._path, linears, tuples, frozenset(self._outside))

    def _require_apart(self, readers: list[Readers]) -> None:
        """Raise CheckpointError if a layer reads what an earlier one computes beside its hidden
        states, keys and values say: the graph of each begins with these.
        """
        owners = {
            observed.node: (index, path)
            for index, linears in enumerate(self._linears)
            for path, observed in linears.items()
        }
        for index, mine in enumerate(readers):
            others = [owners[node] for node in mine if node in owners and owners[node][0] != index]
            if others:
                earlier, path = min(others)
                raise CheckpointError(
                    f"model_type {self._kind!r} cannot be cut into layers: layer {index} reads "
                    f"what {path} of layer {earlier} computes, beside the hidden states"
                )

    def _on_other(self, module: nn.Module, _given: Any) -> None:
        self._outside.add(self._others[module])

    def _before_layer(
        self, index: int, layer: nn.Module, given: Any, named: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Begin the graph at each layer: that of a thousand layers is too deep to be freed.

        What an earlier one returns beside its hidden states is withheld: no shard has it, so that a
        layer may get it, but not read it.
        """
        hidden, *others = given or (named.pop("hidden_states"),)
        self._given = [
            f"layer {index} reads {name}, which layer {self._beside[id(value)]} returns beside the "
            "hidden states"
            for name, value in by_name(Call(tuple(others), named), layer).items()
            if id(value) in self._beside
        ]
        others = [self._or_withheld(value) for value in others]
        named = {name: self._or_withheld(value) for name, value in named.items()}
        return (hidden.detach().requires_grad_(), *others), named

    def _or_withheld(self, value: Any) -> Any:
        return _WITHHELD if id(value) in self._beside else value

    def _on_layer(self, index: int, _module: nn.Module, _given: Any, output: Any) -> None:
        self._outputs[index], self._given = output, []
        for value in output[1:] if isinstance(output, (tuple, list)) else ():
            if isinstance(value, Tensor) or value is _WITHHELD:
                self._beside[id(value)] = index

    def _on_linear(
        self, index: int, path: str, module: nn.Module, given: tuple[Tensor, ...], product: Tensor
    ) -> None:
        if path in self._linears[index]:
            self._repeated.add((index, path))
        self._linears[index][path] = _Observed(module, given[0], product, product.grad_fn)


def is_below(name: str, path: str) -> bool:
    """Whether a module is another one, or a part of it."""
    return name == path or name.startswith(f"{path}.")


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a matrix that another can stand for: W x + b and nothing else.

    A router may be a Linear whose forward is its own.
    """
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    kind: Any = type(module)
    return isinstance(module, nn.Linear) and bool(_computes_a_product(kind))


@cache
def _computes_a_product(kind: Any) -> bool:
    """Whether a forward that is not torch's computes what torch's does."""
    rows = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    weight = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 3.0, 0.5]])
    bias = torch.tensor([0.25, -4.0])
    try:
        with torch.no_grad():
            values = {"weight": weight, "bias": bias}
            found: Any = functional_call(kind(3, 2), values, (rows,))
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False  # it is made, or called, in another way
    return isinstance(found, Tensor) and torch.equal(found, rows @ weight.T + bias)


def _linears(observed: dict[str, _Observed], readers: Readers) -> tuple[Linear, ...]:
    """Describe the linears of a layer through which gradients go, all if there are no gradients.

    Those of an indexer, which only says what to attend to, are left out.
    """
    first: dict[tuple[int, ...], str] = {}
    found = []
    for path, (module, given, _, node) in observed.items():
        if readers and node not in readers:
            continue
        transposed = isinstance(module, Conv1D)
        weight: Any = module.weight
        rows, columns = reversed(weight.shape) if transposed else weight.shape
        found.append(
            Linear(
                path=path,
                out_features=rows,
                in_features=columns,
                bias=module.bias is not None,
                transposed=transposed,
                reads=first.setdefault(_identity(given), path),
                ends=bool(readers) and is_only_added(node, readers),
                split=split_of(node, rows, readers) if readers else (),
            )
        )
    return _with_neurons(found, observed, readers)


def _with_neurons(
    linears: list[Linear], observed: dict[str, _Observed], readers: Readers
) -> tuple[Linear, ...]:
    """Say which linears write the neurons of an MLP, or parts of them, and which one reads them."""
    products = {observed[linear.path].node: linear for linear in linears}
    neurons: dict[str, str] = {}
    for reader in linears:
        nodes = written_by(observed[reader.path].given, readers, products.keys())
        writers = [products[node] for node in nodes]
        paths = [linear.path for linear in (*writers, reader)]
        if (
            writers
            and not reader.split
            and all({*writer.parts} == {reader.in_features} for writer in writers)
            and neurons.keys().isdisjoint(paths)  # it may read neurons, and write others
        ):
            neurons |= dict.fromkeys(paths, reader.path)
    return tuple(linear._replace(neurons=neurons.get(linear.path, "")) for linear in linears)


def _identity(tensor: Tensor) -> tuple[int, ...]:
    """Identify the values of a tensor: a view with the same rows is the same."""
    storage = tensor.untyped_storage()._cdata
    return storage, int(tensor.storage_offset()), tensor.numel(), tensor.shape[-1]
