"""A cache of what low-rank layers compute first, where that is narrower than keys and values.

A key is k = up z + b with z = down x, a latent of fewer numbers than k has; a value likewise. The
cache keeps z (SVD-LLM, arXiv 2403.07378, section 4.2: M = B x) and computes the keys and values of
earlier tokens again at every step: that takes time and saves memory. Keys are rotated then, by
their positions and the model's own rotary embedding.

It serves attention that rotates keys and leaves values as they are, as that of Llama, Mistral and
Qwen2. Whether a model's does is tried on every prompt.
"""
# transformers annotates no __init_subclass__, which mypy would report at every class.
# mypy: allow-untyped-calls

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

_logger = logging.get_logger(__name__)
_INSTEAD = "generate without a latent cache (latent_cache=False)"
_GROWING = ("dynamic", "longrope")  # rotary embeddings that change as a text grows
_POSITIONS = "positions"
_POSITION_BYTES = 4  # of a token, for all layers
_CLOSE = 0.05  # of the largest number, between a key and the same computed again

Turns = Callable[[int, int], tuple[Tensor, Tensor]]


class CacheSize(NamedTuple):
    """Bytes of a cache for each token of a sequence: of latents, and of keys and values."""

    latent: int
    ordinary: int


class LatentGenerationMixin:
    """A model that generates with a latent cache if its configuration says `latent_cache`."""

    def latent_cache(self) -> "LatentCache":
        """Return an empty cache of this model, for `generate(past_key_values=...)`."""
        return LatentCache(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does; from latents, if no other cache is asked for, nor none."""
        this: Any = self
        given = (kwargs.get(name) for name in ("past_key_values", "cache_implementation"))
        named = any(one is not None for one in given) or kwargs.get("use_cache") is False
        asked = (this.generation_config, kwargs.get("generation_config"), *args[1:2])
        other = any(one and (one.use_cache is False or one.cache_implementation) for one in asked)
        if this.config.latent_cache and not (named or other):
            cache = self.latent_cache()
            if any(one and one.is_assistant for one in asked):  # its drafts are taken back
                cache.activate_past_recording()
            if cache.bytes_per_token.latent < cache.bytes_per_token.ordinary:
                kwargs["past_key_values"] = cache
            else:
                _logger.warning_once("latent_cache: no key or value is wider than its latent; off")
        return super().generate(*args, **kwargs)  # type: ignore[misc]


class LatentCache(DynamicCache):
    """A cache that fills while the one model generates that it is made for.

    Its layers hold latents (batch, 1, tokens, rank) where others hold keys or values; what has no
    narrower latent is held as it is. Raises ValueError for attention that it cannot serve.
    """

    def __init__(self, model: Any) -> None:
        decoder, attentions = _parts(model)
        super().__init__(config=model.config)
        width = model.dtype.itemsize
        self._source = _Source(decoder.rotary_emb)
        self._places = DynamicLayer()  # positions (batch, 1, tokens, 1)
        self._turned: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        kept, ordinary = _POSITION_BYTES, 0
        for number, attention in enumerate(attentions[: len(self.layers)]):  # fewer in a draft
            projections = [
                _Projection(f"layers.{number}.self_attn.{name}", attention, self._source)
                for name in ("k_proj", "v_proj")
            ]
            self.layers[number] = _latent_layer(self.layers[number], projections, attention)
            kept += width * sum(one.kept_numbers for one in projections)
            ordinary += width * sum(one.linear.out_features for one in projections)
        self.bytes_per_token = CacheSize(kept, ordinary)
        self.layers.append(self._places)  # beyond those of the model, to be handled as they are

    @property
    def nbytes(self) -> int:
        """Bytes of all that the cache holds between two steps."""
        layers: list[Any] = self.layers
        tensors = (tensor for layer in layers for tensor in (layer.keys, layer.values))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the new keys and values (batch, heads, tokens, head_dim) of a layer; return all."""
        if (positions := self._source.take(_POSITIONS)) is not None:  # the first layer of a step
            if positions.ndim != 2:
                raise ValueError(f"a token has several positions here; {_INSTEAD}")
            places = positions.to(torch.int32).expand(len(key_states), -1)[:, None, :, None]
            self._places.update(places, places[..., :0])
            self._turned.clear()

        def turns(count: int, after: int) -> tuple[Tensor, Tensor]:
            """Cosines and sines of `count` tokens that `after` others follow."""
            if (count, after) not in self._turned:
                places: Any = self._places.keys
                start = places.shape[-2] - after - count
                positions = places[:, 0, start : start + count, 0].long()
                self._turned[count, after] = self._source.turns(key_states, positions)
            cosines, sines = self._turned[count, after]
            return cosines.to(key_states.device), sines.to(key_states.device)

        found = super().update(key_states, value_states, layer_idx, turns)
        if layer_idx == len(self.layers) - 2:  # the last one of the model
            self._turned.clear()
        return found


class _OfTheModel:
    """What copies of a cache share, as they have one model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class _Source(_OfTheModel):
    """What the forward that runs in this thread computes; it is seen by hooks, which live as long
    as this object.
    """

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self._seen = seen = threading.local()  # hooks that know self would keep it alive

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.__dict__[_POSITIONS] = kwargs["position_ids"] if kwargs else args[1]

        weakref.finalize(self, rotary.register_forward_pre_hook(keep, with_kwargs=True).remove)

    def watch(self, name: str, module: nn.Module) -> None:
        """See what goes into a module."""
        seen = self._seen

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.__dict__[name] = args[0]

        weakref.finalize(self, module.register_forward_pre_hook(keep).remove)

    def take(self, name: str) -> Any:
        """Return what was seen since it was last taken; None if nothing was."""
        return self._seen.__dict__.pop(name, None)

    def turns(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (batch, tokens, head_dim) of positions (batch, tokens)."""
        found: tuple[Tensor, Tensor] = self._rotary(like, position_ids=positions)
        self.take(_POSITIONS)  # no new ones
        return found


class _Projection(_OfTheModel):
    """A k_proj or v_proj: what is kept of its output, and the output from that."""

    def __init__(self, name: str, attention: Any, source: _Source) -> None:
        self.linear: Any = getattr(attention, name.rpartition(".")[2])
        self._name, self._source, self._head_dim = name, source, attention.head_dim
        rank = getattr(self.linear, "rank", None)
        self._narrower = rank is not None and rank < self.linear.out_features
        self.kept_numbers: int = rank if self._narrower else self.linear.out_features  # type: ignore[assignment]
        own = (*self.linear.parameters(recurse=False), *self.linear.buffers(recurse=False))
        if self._narrower and any(tensor.is_meta for tensor in own):
            raise ValueError(f"{name}: parts of it are offloaded; {_INSTEAD}")
        if self._narrower:
            source.watch(name, self.linear.up)  # whatever the encoding, the latent goes into `up`

    def kept(self, states: Tensor) -> Tensor:
        """Return what is kept of the new states (batch, heads, tokens, head_dim)."""
        if not self._narrower:
            return states
        latent = self._source.take(self._name)
        if latent is None:
            raise ValueError(
                f"{self._name}: its latents were not seen, as of a compiled model; {_INSTEAD}"
            )
        kept: Tensor = latent[:, None]
        return kept

    def states(self, kept: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the states (batch, heads, tokens, head_dim) of which something is kept."""
        if not self._narrower:
            return kept
        flat = self.linear.expand(kept[:, 0])
        self._source.take(self._name)  # no new one
        return turn(flat.view(*flat.shape[:2], -1, self._head_dim).transpose(1, 2))

    def require(self, same: Tensor, states: Tensor) -> None:
        """Raises ValueError unless states that were computed again are those of the attention."""
        if same.shape != states.shape or (same - states).abs().max() > _CLOSE * states.abs().max():
            raise ValueError(
                f"{self._name}: this attention does more to its output than to rotate keys; "
                f"{_INSTEAD}"
            )


class _Latents(DynamicLayer):
    """A layer of the cache: holds latents of all tokens, and returns their keys and values."""

    projections: Sequence[_Projection]
    rotate: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]
    tried = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        turns: Turns = args[0]
        states, new = (key_states, value_states), key_states.shape[-2]
        kept = [one.kept(each) for one, each in zip(self.projections, states, strict=True)]
        if not self.tried:
            same = self._states(kept, turns(new, 0))
            for one, each, mine in zip(self.projections, states, same, strict=True):
                one.require(mine, each)
            self.tried = bool(turns(new, 0)[1].any())  # at position 0 nothing turns
        held = super().update(*kept)
        if (old := held[0].shape[-2] - new) == 0:
            return states
        earlier = self._states([each[..., :old, :] for each in held], turns(old, new))
        keys, values = (torch.cat(pair, dim=-2) for pair in zip(earlier, states, strict=True))
        return keys, values

    def _states(self, kept: Sequence[Tensor], turned: tuple[Tensor, Tensor]) -> list[Tensor]:
        keys, values = self.projections
        return [
            keys.states(kept[0], lambda states: self.rotate(states, turned)),
            values.states(kept[1], lambda states: states),
        ]


class _SlidingLatents(_Latents, DynamicSlidingWindowLayer):
    """The same of the tokens in a window."""


def _latent_layer(layer: Any, projections: Sequence[_Projection], attention: nn.Module) -> _Latents:
    """Return a layer for latents in the place of one for keys and values."""
    if type(layer) is DynamicLayer:
        made = _Latents()
    elif type(layer) is DynamicSlidingWindowLayer:
        made = _SlidingLatents(layer.sliding_window)
    else:
        raise ValueError(f"{type(layer).__name__} holds more than keys and values; {_INSTEAD}")
    rotate: Any = vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    turned: int | None = getattr(attention, "rotary_ndims", None)  # the first of a head; None: all

    def rotated(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        first: Tensor = rotate(states[:, :0, :, :turned], states[..., :turned], *turns)[1]
        return first if turned is None else torch.cat([first, states[..., turned:]], dim=-1)

    made.projections, made.rotate = projections, rotated
    return made


def _parts(model: Any) -> tuple[Any, list[Any]]:
    """Return the decoder of a model and the attention of its layers.

    Raises ValueError if they are not of the kind that a latent cache serves.
    """
    decoder = model.get_decoder()
    found: list[Any] = [getattr(one, "self_attn", None) for one in getattr(decoder, "layers", ())]
    known = [hasattr(one, "k_proj") and hasattr(one, "v_proj") for one in found]
    rotates = [hasattr(sys.modules[type(one).__module__], "apply_rotary_pos_emb") for one in found]
    if not (found and all(known) and all(rotates) and hasattr(decoder, "rotary_emb")):
        raise ValueError(
            f"{type(model).__name__}: not every layer has self_attn.k_proj and v_proj under one "
            f"rotary_emb; {_INSTEAD}"
        )
    rope = getattr(decoder.rotary_emb, "rope_type", None)
    if not isinstance(rope, str) or rope in _GROWING:
        raise ValueError(f"rotary embedding {rope!r} changes with layer or length; {_INSTEAD}")
    if getattr(model.config, "clip_qkv", None) is not None:
        raise ValueError(f"clip_qkv is set, which bounds keys and values; {_INSTEAD}")
    return decoder, found
