"""The shape of a model: its targeted matrices, and the tensors that pass through unchanged."""

import math
from typing import Literal, NamedTuple

from pydantic import Field

from schemas.config import Factors, Schema
from schemas.location import Location

Encoding = Literal["pivoted", "plain", "dense"]
Side = Literal["output", "input"]


Dimension = Literal["hidden", "query", "key", "head", "mlp", "vocabulary", "experts"]
"""A size that config.json gives: `schemas/shapes.py` says how."""


class Target(NamedTuple):
    """One kind of matrix (`rows`, `columns`) of a decoder layer.

    Targets with equal `reads` share their input. A `*` in `path` stands for the number of each
    expert. `bias` is whether it has one, or the field of config.json that says so.
    """

    path: str
    reads: str
    rows: Dimension
    columns: Dimension
    bias: bool | str = False


class Architecture(NamedTuple):
    """What the compressor must know of a model family; a family is a row of `ARCHITECTURES`.

    `end` is the target whose output is added to the residual at the end of a layer, and is read by
    nothing else; empty where no one target is. `others` are the weights of a layer beside its
    targets. A family that is only `planned` has a plan, but is not compressed yet.
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

# safetensors' names of dtypes, and their bytes.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
ITEM_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class TensorSpec(Schema):
    """A tensor of a checkpoint, known from a file header; `dtype` is safetensors' name of it.

    Its content begins at byte `offset` of the file; None where config.json alone is known.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its content."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class MatrixSpec(Schema):
    """A targeted weight W (m, n) = (`out_features`, `in_features`).

    `name` is relative to the base model: `layers.3.self_attn.q_proj`. `share` is the fraction of
    the tokens that reach it: 1, but for an expert.
    """

    name: str
    layer: int
    path: str
    reads: str
    out_features: int
    in_features: int
    bias: bool
    share: float = 1.0

    @property
    def size(self) -> int:
        """Parameters of W, the bias not counted."""
        return self.out_features * self.in_features

    @property
    def small(self) -> int:
        """min(m, n): the size of every eigenproblem of this matrix."""
        return min(self.out_features, self.in_features)

    @property
    def side(self) -> Side:
        """The smaller side, on which W' is a projection of W."""
        return "output" if self.out_features <= self.in_features else "input"


def factor_parameters(factors: Factors, rank: int, out_features: int, in_features: int) -> int:
    """Parameters of W' (m, n) at rank k: k (m + n), or k (m + n - k) when pivoted (PIFA, 2025)."""
    return rank * (out_features + in_features - (rank if factors == "pivoted" else 0))


def whole(parameters: float) -> int:
    """A number of parameters without float64's rounding: (1 - 0.8) * 10 is 2, not 1.9999999."""
    return int(parameters * (1 + 1e-12))


class Choice(Schema):
    """What becomes of one matrix: dense where `rank` is None."""

    rank: int | None = Field(ge=1)


class DecoderSpec(Schema):
    """What headers say of any checkpoint whose layers can be built: a base, or one made from it.

    `low_rank` is whether it is compressed already; `model_type` is that of the base in any case.
    `weights` is the URL of its weight files; None where they are beside config.json.
    """

    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    tied: bool
    tensors: tuple[TensorSpec, ...]
    weights: Location | None = None
    low_rank: bool = False

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    @property
    def parameters(self) -> int:
        """Parameters of the model, tied ones counted once; an order of rows is none."""
        idle = f"{self.architecture.head}weight" if self.tied else None
        mine = [tensor for tensor in self.tensors if tensor.name != idle]
        return sum(math.prod(t.shape) for t in mine if t.dtype.startswith(("F", "BF")))


class ModelSpec(DecoderSpec):
    """Everything known of a base checkpoint before a weight is read."""

    dtype: str
    matrices: tuple[MatrixSpec, ...]

    @property
    def targeted(self) -> int:
        """Parameters of all targeted matrices."""
        return sum(matrix.size for matrix in self.matrices)
