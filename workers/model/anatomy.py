"""The linear layers of any decoder, found by a forward on the meta device: no weight is read.

The forward tells which linears a layer calls and with which shapes, which of them receive the same
tensor (q, k and v; gate and up; in some families attention and MLP together) and so share a moment,
and whether a layer returns a tuple.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from schemas.errors import CheckpointError
from workers.model.carving import hidden_states, layer_list

# A router may be a Linear whose forward is its own: no matrix that another could stand for.
_PLAIN = (nn.Linear.forward, Conv1D.forward)
_TOKENS = 12  # more than any kernel of a convolution; sliding windows do not matter to shapes


class Linear(NamedTuple):
    """A linear layer W (m, n) = (`out_features`, `in_features`) of a decoder layer.

    `path` is its name in the layer, `reads` the path of the first linear that receives the same
    tensor. The weight of a Conv1D is stored as (n, m): `transposed`. `ends` tells whether the
    layer adds its product to the result, and computes nothing else from it.
    """

    path: str
    out_features: int
    in_features: int
    bias: bool
    transposed: bool
    reads: str
    ends: bool


class Anatomy(NamedTuple):
    """A model: the path of its list of layers; for each layer its linears, in the order of calls,
    and whether it returns a tuple.
    """

    path: str
    linears: tuple[tuple[Linear, ...], ...]
    tuples: tuple[bool, ...]


def describe(model_class: Any, config: PretrainedConfig) -> Anatomy:
    """Describe the model of a configuration. Raises CheckpointError if it cannot run on meta."""
    with torch.device("meta"):  # in bfloat16, which grouped experts need there
        model: Any = model_class._from_config(config, dtype=torch.bfloat16).eval()
    path, layers = layer_list(model)
    refused: list[str] = []
    for enabled in (True, False):  # some kinds run on meta without gradients only
        for mask in (_mask(), None):  # and some make their own mask there, others cannot
            seen = _Seen(layers)
            try:
                with torch.set_grad_enabled(enabled), seen.observing():
                    tokens = torch.zeros(2, _TOKENS, dtype=torch.long, device="meta")
                    model(input_ids=tokens, attention_mask=mask, use_cache=False)
                    refused.append("it does not call all its layers")  # unless it did
            except Exception as error:  # noqa: BLE001 (a model may raise anything)
                refused.append(f"{type(error).__name__}: {error}")
            if seen.complete:  # even if what follows the layers cannot run there
                return Anatomy(path, *seen.found())
    raise CheckpointError(
        f"model_type {config.model_type!r}: its forward cannot run without values ({refused[0]})"
    )


def _mask() -> Tensor:
    """Return a mask (batch, 1, tokens, tokens) to add to scores, which all kinds take as it is."""
    return torch.zeros(2, 1, _TOKENS, _TOKENS, dtype=torch.bfloat16, device="meta")


class _Observed(NamedTuple):
    """What a linear received and gave. Both are kept, so that their identities stay theirs."""

    module: nn.Module
    given: Tensor
    product: Tensor


class _Seen:
    """What one forward shows of a list of layers."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self._linears: list[dict[str, _Observed]] = [{} for _ in layers]
        self._outputs: dict[int, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether every layer has returned."""
        return len(self._outputs) == len(self._layers)

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Watch a forward."""
        hooks = []
        for index, layer in enumerate(self._layers):
            hooks.append(layer.register_forward_hook(self._on_layer(index)))
            for path, module in layer.named_modules():
                if type(module).forward in _PLAIN:
                    hooks.append(module.register_forward_hook(self._on_linear(index, path)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def found(self) -> tuple[tuple[tuple[Linear, ...], ...], tuple[bool, ...]]:
        """Return the linears of every layer, and whether it returns a tuple."""
        outputs = [self._outputs[index] for index in range(len(self._layers))]
        linears = map(_linears, self._linears, map(hidden_states, outputs))
        return tuple(linears), tuple(isinstance(output, tuple) for output in outputs)

    def _on_layer(self, index: int) -> Any:
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:
            self._outputs[index] = output

        return hook

    def _on_linear(self, index: int, path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], product: Tensor) -> None:
            self._linears[index].setdefault(path, _Observed(module, given[0], product))

        return hook


def _linears(observed: dict[str, _Observed], output: Tensor) -> tuple[Linear, ...]:
    first: dict[tuple[int, ...], str] = {}
    ends = _ends(observed, output)
    found = []
    for path, (module, given, _) in observed.items():
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
                ends=path in ends,
            )
        )
    return tuple(found)


def _identity(tensor: Tensor) -> tuple[int, ...]:
    """Identify the values of a tensor: a view with the same rows is the same."""
    storage = tensor.untyped_storage()._cdata
    return storage, int(tensor.storage_offset()), tensor.numel(), tensor.shape[-1]


_SUMS = frozenset(
    f"{name}Backward0" for name in ("Add", "Alias", "Clone", "ToCopy", "UnsafeView", "View")
)


def _ends(observed: dict[str, _Observed], output: Tensor) -> set[str]:
    """Return the linears whose products are only added to the result: nothing reads their values.

    None, if the forward was without gradients.
    """
    if output.grad_fn is None:
        return set()
    readers: dict[Any, list[Any]] = {output.grad_fn: []}
    waiting = [output.grad_fn]
    while waiting:
        reader = waiting.pop()
        for node, _ in reader.next_functions:
            if node is not None:
                waiting += [] if node in readers else [node]
                readers.setdefault(node, []).append(reader)

    @functools.cache
    def only_added(node: Any) -> bool:
        return all(reader.name() in _SUMS and only_added(reader) for reader in readers[node])

    return {
        path
        for path, one in observed.items()
        if one.product.grad_fn in readers and only_added(one.product.grad_fn)
    }
