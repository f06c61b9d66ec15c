"""Any causal language model, cut at its list of decoder layers, with no code for its family.

What is outside the layers is the model's own forward, run with stand-ins in the places of layers.
The embedding is what the first layer is called with; the tail is what the forward makes of what the
last one returns. The arguments of every layer (masks, rotary embeddings) are recorded once for each
shape of a batch, because they depend on nothing else; a model in which they do is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import CheckpointError

_OTHER = 1  # token ids differ from others in this bit


class Call(NamedTuple):
    """The arguments of a layer beside its hidden states, for one shape of a batch."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class LayerList(NamedTuple):
    """The decoder layers of a model, and the name of their list in it."""

    path: str
    modules: nn.ModuleList


class Carved:
    """A causal language model whose layers are called one by one.

    Hidden states are (batch, tokens, hidden), tokens are ids (batch, tokens), int64. `tuples` tells
    for each layer whether it returns its hidden states as the first of a tuple.
    """

    def __init__(self, model: PreTrainedModel, tuples: Sequence[bool]) -> None:
        """Raises CheckpointError if the model has no list of decoder layers."""
        self._model, self._tuples = model, tuples
        self.path, self._list = layer_list(model)
        self.layers = tuple(self._list)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the hidden states before the first layer."""
        return self._until({0: _stop}, tokens)

    def record(self, tokens: Tensor) -> list[Call]:
        """Return the arguments of every layer for batches of the shape of `tokens`.

        Raises CheckpointError if one of them depends on the tokens, or if the layers are not called
        once each, in order: then not all that goes from layer to layer is a hidden state.
        """
        found, again = self._record(tokens), self._record(tokens ^ _OTHER)
        for index, (call, other) in enumerate(zip(found, again, strict=True)):
            if name := _difference(call, other):
                raise self._unfit(f"argument {name} of layer {index} depends on the text")
        return found

    def layer(self, index: int, hidden: Tensor, call: Call) -> Tensor:
        """Return what layer `index` makes of hidden states."""
        output = self.layers[index](hidden, *call.positional, **call.named)
        return hidden_states(output)

    def tail(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (batch, tokens, vocabulary) from the hidden states after the last layer.

        Gradients go through it. Of `tokens` only the shape counts.
        """
        last = len(self.layers) - 1
        acts = {index: self._passing(index) for index in range(last)}
        with self._standing_in(acts | {last: lambda *_: self._as_layer(last, hidden)}):
            logits: Tensor = self._forward(tokens).logits
        return logits

    def _record(self, tokens: Tensor) -> list[Call]:
        found: list[Call] = []

        def recording(index: int) -> "_Act":
            def act(hidden: Tensor, call: Call) -> Any:
                if index != len(found):
                    raise self._unfit(f"layer {index} is called after {len(found)} others")
                found.append(call)
                if index == len(self.layers) - 1:
                    raise _Reached(hidden)
                return self._as_layer(index, hidden)

            return act

        self._until({index: recording(index) for index in range(len(self.layers))}, tokens)
        return found

    def _passing(self, index: int) -> "_Act":
        return lambda hidden, _: self._as_layer(index, hidden)

    def _as_layer(self, index: int, hidden: Tensor) -> Any:
        """Return hidden states in the form in which a layer returns them."""
        return (hidden, None) if self._tuples[index] else hidden

    def _until(self, acts: "dict[int, _Act]", tokens: Tensor) -> Tensor:
        """Run the forward until a stand-in stops it; return the hidden states that came there."""
        with self._standing_in(acts):
            try:
                self._forward(tokens)
            except _Reached as reached:
                return reached.hidden
        raise self._unfit("its forward does not call all its layers")

    def _forward(self, tokens: Tensor) -> Any:
        return self._model(input_ids=tokens, use_cache=False)

    @contextmanager
    def _standing_in(self, acts: "dict[int, _Act]") -> Iterator[None]:
        try:
            for index, act in acts.items():
                self._list[index] = _StandIn(self.layers[index], act)
            yield
        finally:
            for index in acts:
                self._list[index] = self.layers[index]

    def _unfit(self, why: str) -> CheckpointError:
        kind = self._model.config.model_type
        return CheckpointError(f"model_type {kind!r} cannot be cut into layers: {why}")


def layer_list(model: PreTrainedModel) -> LayerList:
    """Return the decoder layers: the outermost list with as many modules as config.json says.

    Raises CheckpointError if there is none, or more than one.
    """
    config: PretrainedConfig = model.config.get_text_config(decoder=True)
    number = config.num_hidden_layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number
    }
    outer = [name for name in found if not any(name.startswith(f"{one}.") for one in found)]
    if len(outer) != 1:
        raise CheckpointError(
            f"model_type {model.config.model_type!r}: one list of {number} layers is needed, found "
            f"{', '.join(outer) or 'none'}"
        )
    return LayerList(outer[0], found[outer[0]])


def hidden_states(output: Any) -> Tensor:
    """Return the hidden states of what a layer returns."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


_Act = Callable[[Tensor, Call], Any]


class _Reached(Exception):  # noqa: N818 (it is no error)
    """A forward has come to the layer that was waited for."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _StandIn(nn.Module):
    """Is called in the place of a layer, and has its attributes, which models read."""

    def __init__(self, layer: nn.Module, act: _Act) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not as a submodule
        self.__dict__["_act"] = act

    def forward(self, *positional: Any, **named: Any) -> Any:
        hidden, *others = positional or (named.pop("hidden_states"),)
        return self.__dict__["_act"](hidden, Call(tuple(others), named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def _stop(hidden: Tensor, _: Call) -> Any:
    raise _Reached(hidden)


def _difference(call: Call, other: Call) -> str:
    """Return the name of an argument that differs; empty if none does."""
    mine = dict(enumerate(call.positional)) | call.named
    theirs = dict(enumerate(other.positional)) | other.named
    names = [name for name in mine if name not in theirs or not _same(mine[name], theirs[name])]
    return str(names[0]) if names else ""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return type(one) is type(other)
