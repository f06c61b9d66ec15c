"""The families of models that can be compressed."""

from typing import Literal, NamedTuple

Side = Literal["output", "input"]


Dimension = Literal["hidden", "query", "key", "head", "mlp", "vocabulary", "experts"]
"""A size that config.json gives; `schemas/model/shapes.py` says how."""


class Target(NamedTuple):
    """One kind of matrix (`rows`, `columns`) of a decoder layer.

    Targets with equal `reads` share their input. A `*` in `path` stands for the number of each
    expert. `bias` tells whether it has a bias, or names the field of config.json that does.
    """

    path: str
    reads: str
    rows: Dimension
    columns: Dimension
    bias: bool | str = False


class Architecture(NamedTuple):
    """What the compressor must know of a model family; a family is a row of `ARCHITECTURES`.

    `end` is the target whose output only ends the layer: it is added to the residual and read by
    nothing else; empty if no single target does that. `others` are the layer's weights besides its
    targets. A family that is only `planned` can be planned, but not compressed yet.
    """

    base: str
    embedding: str
    norm: str
    head: str
    layer: str
    targets: tuple[Target, ...]
    others: dict[str, tuple[Dimension, ...]]
    end: str = ""
    planned: bool = False


def _attention(qkv_bias: bool | str, output_bias: bool | str) -> tuple[Target, ...]:
    return (
        Target("self_attn.q_proj", "self_attn", "query", "hidden", qkv_bias),
        Target("self_attn.k_proj", "self_attn", "key", "hidden", qkv_bias),
        Target("self_attn.v_proj", "self_attn", "key", "hidden", qkv_bias),
        Target("self_attn.o_proj", "self_attn.o_proj", "hidden", "query", output_bias),
    )


def _mlp(bias: bool | str) -> tuple[Target, ...]:
    return (
        Target("mlp.gate_proj", "mlp", "mlp", "hidden", bias),
        Target("mlp.up_proj", "mlp", "mlp", "hidden", bias),
        Target("mlp.down_proj", "mlp.down_proj", "hidden", "mlp", bias),
    )


_NORMS: dict[str, tuple[Dimension, ...]] = {
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
}
_HEAD_NORMS: dict[str, tuple[Dimension, ...]] = {
    "self_attn.q_norm": ("head",),
    "self_attn.k_norm": ("head",),
}
_EXPERT = "block_sparse_moe.experts.*"
_EXPERTS = (
    Target(f"{_EXPERT}.w1", _EXPERT, "mlp", "hidden"),
    Target(f"{_EXPERT}.w2", f"{_EXPERT}.w2", "hidden", "mlp"),
    Target(f"{_EXPERT}.w3", _EXPERT, "mlp", "hidden"),
)

_LLAMA = Architecture(
    base="model.",
    embedding="model.embed_tokens.",
    norm="model.norm.",
    head="lm_head.",
    layer="model.layers.{}.",
    targets=_attention("attention_bias", "attention_bias") + _mlp("mlp_bias"),
    others=_NORMS,
    end="mlp.down_proj",
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(targets=_attention(False, False) + _mlp(False)),
    "qwen2": _LLAMA._replace(targets=_attention(True, False) + _mlp(False)),
    "qwen3": _LLAMA._replace(
        targets=_attention("attention_bias", "attention_bias") + _mlp(False),
        others=_NORMS | _HEAD_NORMS,
    ),
    "mixtral": _LLAMA._replace(
        targets=_attention(False, False) + _EXPERTS,
        others=_NORMS | {"block_sparse_moe.gate": ("experts", "hidden")},
        end="",
        planned=True,
    ),
}
