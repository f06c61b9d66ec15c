"""Any causal language model, cut at its list of decoder layers, with no code for its family.

What is outside the layers is the model's own forward, run with stand-ins in the places of layers.
The embedding is what the first layer is called with; the tail is what the forward makes of what the
last one returns. The arguments of every layer (masks, rotary embeddings) are recorded once for each
shape of a batch, because they depend on nothing else; a model in which they do is refused.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from schemas.errors import CheckpointError, CompressorError
from schemas.model.spec import DecoderSpec
from workers.model.arguments import Call, difference, same
from workers.process.failures import failure

_OTHER = 1  # token ids differ from others in this bit


class Carved:
    """A causal language model whose layers are called one by one.

    Hidden states are (batch, tokens, hidden), tokens are ids (batch, tokens), int64, both on
    `device`. Embedding, `head` and layers may be on the meta device, if they are not needed.
    """

    def __init__(self, model: Any, spec: DecoderSpec, device: torch.device) -> None:
        self._model = model
        self._spec, self._device = spec, device
        self._list = model.get_submodule(spec.path)
        self.layers: tuple[nn.Module, ...] = tuple(self._list)
        self._embedding = model.get_input_embeddings()
        self.head: nn.Module = model.get_output_embeddings()
        self._name_of_head = next(n for n, m in model.named_modules() if m is self.head)
        _say_device(model, device)
        self._tail_is_checked = False
        self._recorded: tuple[torch.Size, list[Call]] | None = None

    def module(self, name: str) -> nn.Module:
        """Return a module by its name relative to the base model; the head is mostly beside it."""
        if name == self._name_of_head:
            return self.head
        module: nn.Module = self._model.base_model.get_submodule(name)
        return module

    def owner(self, parameter: str) -> nn.Module:
        """Return the module of a parameter, by the parameter's name in the whole model."""
        module: nn.Module = self._model.get_submodule(parameter.rpartition(".")[0])
        return module

    def in_tail(self, parameters: Collection[str]) -> list[str]:
        """Return those of some parameters outside the layers on which logits depend in `tail`."""
        weights = [self._model.get_parameter(name).requires_grad_() for name in parameters]
        hidden = torch.ones(
            1, 2, self._spec.hidden_size, dtype=self._model.dtype, device=self._device
        )
        with torch.enable_grad():
            total = self.tail(hidden).float().sum()
        found: Any = torch.autograd.grad(total, weights, allow_unused=True)
        for weight in weights:
            weight.requires_grad_(False)
        return [n for n, g in zip(parameters, found, strict=True) if g is not None]

    def ends(self, index: int) -> list[nn.Module]:
        """Return the modules of layer `index` whose products are only added to its result."""
        return [self.layers[index].get_submodule(path) for path in self._spec.ends[index]]

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Return the hidden states before the first layer."""
        return self._until(_stop, tokens)

    def calls(self, shape: torch.Size) -> list[Call]:
        """Return the arguments of every layer for batches of a shape (batch, tokens).

        Those of the last shape are kept. Raises CheckpointError if one of them depends on the
        tokens, or if the layers are not called once each, in order: then not all that goes from
        layer to layer is a hidden state.
        """
        if self._recorded is None or self._recorded[0] != shape:
            self._recorded = shape, self._calls(self._any_tokens(shape))
        return self._recorded[1]

    def layer(self, index: int, hidden: Tensor) -> Tensor:
        """Return what layer `index` makes of hidden states."""
        call = self.calls(hidden.shape[:2])[index]
        return hidden_states(self.layers[index](hidden, *call.positional, **call.named))

    def tail(self, hidden: Tensor, product: "Product | None" = None) -> Tensor:
        """Return logits (batch, tokens, vocabulary) from the hidden states after the last layer.

        Gradients go through it. `product` computes rows (..., hidden) times the output embedding
        (vocabulary, hidden), transposed, in place of the head. Raises CheckpointError if the logits
        depend on the text otherwise than through hidden states.
        """
        self.require_blind(hidden)
        return self._tail(hidden, self._any_tokens(hidden.shape[:2]), product)

    @torch.no_grad()
    def require_blind(self, hidden: Tensor) -> None:
        """Raise CheckpointError as `tail` does, once it is known; the tail is computed for that."""
        if self._tail_is_checked:
            return
        hidden = hidden[:1, :2].detach()
        tokens = self._any_tokens(hidden.shape[:2])
        logits = [self._tail(hidden, text, None) for text in (tokens, tokens ^ _OTHER)]
        if not same(*logits):
            raise self._unfit("what follows the last layer depends on the text")
        self._tail_is_checked = True

    def _tail(self, hidden: Tensor, tokens: Tensor, product: "Product | None") -> Tensor:
        def act(index: int, given: Tensor, _: Call) -> Any:
            is_last = index == len(self.layers) - 1
            return self._as_layer(index, hidden if is_last else given)

        with self._standing_in(act), self._with_head(product):
            logits: Tensor = self._forward(tokens).logits
        return logits

    def _any_tokens(self, shape: torch.Size) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device=self._device)

    @torch.no_grad()
    def _calls(self, tokens: Tensor) -> list[Call]:
        found, again = self._record(tokens), self._record(tokens ^ _OTHER)
        for index, (call, other) in enumerate(zip(found, again, strict=True)):
            if name := difference(call, other, self.layers[index]):
                raise self._unfit(
                    f"argument {name} of layer {index} depends on the text; layers are computed "
                    "from hidden states, and from what depends on the shape of the text alone"
                )
        return found

    def _record(self, tokens: Tensor) -> list[Call]:
        found: list[Call] = []

        def act(index: int, hidden: Tensor, call: Call) -> Any:
            if index != len(found):
                raise self._unfit(f"layer {index} is called after {len(found)} others")
            found.append(call)
            if index == len(self.layers) - 1:
                raise _Reached(hidden)
            return self._as_layer(index, hidden)

        self._until(act, tokens)
        return found

    def _as_layer(self, index: int, hidden: Tensor) -> Any:
        """Return hidden states in the form in which a layer returns them."""
        return (hidden, None) if self._spec.tuples[index] else hidden

    def _until(self, act: "_Act", tokens: Tensor) -> Tensor:
        """Run the forward until a stand-in stops it; return the hidden states that came there."""
        with self._standing_in(act):
            try:
                self._forward(tokens)
            except _Reached as reached:
                return reached.hidden
        raise self._unfit("its forward does not call all its layers")

    def _forward(self, tokens: Tensor) -> Any:
        blank = self._embedding.weight.is_meta
        if blank:
            self._embedding.forward = self._blank
        try:
            return self._model(input_ids=tokens, use_cache=False)
        except (CompressorError, MemoryError, _Reached):
            raise
        except Exception as error:  # a model may raise anything
            if failure(error) != "other":
                raise
            raise self._unfit(f"{type(error).__name__}: {error}") from error
        finally:
            if blank:
                del self._embedding.forward

    def _blank(self, tokens: Tensor) -> Tensor:
        """Stand in for the embedding, of whose result nothing is used."""
        width, dtype = self._embedding.weight.shape[-1], self._embedding.weight.dtype
        return torch.zeros(*tokens.shape, width, dtype=dtype, device=self._device)

    @contextmanager
    def _with_head(self, product: "Product | None") -> Iterator[None]:
        if product is None:
            yield
            return
        head: Any = self.head
        bias = getattr(head, "bias", None)

        def forward(rows: Tensor) -> Tensor:
            logits = product(rows, head.weight)
            return logits if bias is None else logits + bias.to(logits)

        head.forward = forward
        try:
            yield
        finally:
            del head.forward

    @contextmanager
    def _standing_in(self, act: "_Act") -> Iterator[None]:
        try:
            for index, layer in enumerate(self.layers):
                self._list[index] = _StandIn(layer, partial(act, index))
            yield
        finally:
            for index, layer in enumerate(self.layers):
                self._list[index] = layer

    def _unfit(self, why: str) -> CheckpointError:
        kind = self._model.config.model_type
        return CheckpointError(f"model_type {kind!r} cannot be cut into layers: {why}")


def _say_device(model: nn.Module, device: torch.device) -> None:
    """Let all models within one say that they are on a device, to which their forwards move what
    they compute. Else each says where its first parameter is, which may not be filled.
    """
    module: Any
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            kind = type(module)  # whose full name transformers looks up
            fields = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
            module.__class__ = type(kind.__name__, (kind,), {**fields, "device": device})


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and the layers of the text decoder's list: the outermost one as long as
    config.json says.

    Raises CheckpointError if there is none, or more than one.
    """
    config: PretrainedConfig = model.config.get_text_config(decoder=True)
    number = getattr(config, "num_hidden_layers", None)
    whole: Any = model
    decoder = whole.get_decoder()
    if decoder is whole.get_output_embeddings():  # of modernbert-decoder, by its name
        decoder = model.base_model
    inside = set(decoder.modules())  # a vision tower may have as many layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number and module in inside
    }
    outer = [name for name in found if not any(name.startswith(f"{one}.") for one in found)]
    if len(outer) != 1:
        raise CheckpointError(
            f"model_type {model.config.model_type!r}: one list of {number} layers is needed, found "
            f"{', '.join(outer) or 'none'}"
        )
    return outer[0], found[outer[0]]


def hidden_states(output: Any) -> Tensor:
    """Return the hidden states of what a layer returns."""
    found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found


_Act = Callable[[int, Tensor, Call], Any]
Product = Callable[[Tensor, Tensor], Tensor]


class _Reached(Exception):  # noqa: N818 (it is no error)
    """A forward has come to the layer that was waited for."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _StandIn(nn.Module):
    """Is called in the place of a layer, and has its attributes, which models read."""

    def __init__(self, layer: nn.Module, act: Callable[[Tensor, Call], Any]) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not as a submodule
        self.__dict__["_act"] = act

    def forward(self, *positional: Any, **named: Any) -> Any:
        hidden, *others = positional or (named.pop("hidden_states"),)
        return self.__dict__["_act"](hidden, Call(tuple(others), named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def _stop(_: int, hidden: Tensor, _call: Call) -> Any:
    raise _Reached(hidden)
