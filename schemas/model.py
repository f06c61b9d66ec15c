"""The shape of a model: its targeted matrices, and the tensors that pass through unchanged."""

import math
from typing import Literal, NamedTuple

from pydantic import Field

from schemas.config import Factors, Schema

Encoding = Literal["pivoted", "plain", "dense"]
Side = Literal["output", "input"]


class Target(NamedTuple):
    """One kind of matrix of a decoder layer; targets with equal `reads` share their input."""

    path: str
    reads: str


class Architecture(NamedTuple):
    """What the compressor must know of a model family; a family is a row of `ARCHITECTURES`."""

    base: str
    embedding: str
    norm: str
    head: str
    layer: str
    targets: tuple[Target, ...]


_DECODER = Architecture(
    base="model.",
    embedding="model.embed_tokens.",
    norm="model.norm.",
    head="lm_head.",
    layer="model.layers.{}.",
    targets=(
        Target("self_attn.q_proj", reads="self_attn"),
        Target("self_attn.k_proj", reads="self_attn"),
        Target("self_attn.v_proj", reads="self_attn"),
        Target("self_attn.o_proj", reads="self_attn.o_proj"),
        Target("mlp.gate_proj", reads="mlp"),
        Target("mlp.up_proj", reads="mlp"),
        Target("mlp.down_proj", reads="mlp.down_proj"),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}


# safetensors' names of dtypes, and their bytes.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
ITEM_BYTES |= {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class TensorSpec(Schema):
    """A tensor of a checkpoint, known from a file header; `dtype` is safetensors' name of it."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its content."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class MatrixSpec(Schema):
    """A targeted weight W (m, n) = (`out_features`, `in_features`).

    `name` is relative to the base model: `layers.3.self_attn.q_proj`.
    """

    name: str
    layer: int
    path: str
    reads: str
    out_features: int
    in_features: int
    bias: bool

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


class Choice(Schema):
    """What becomes of one matrix: dense where `rank` is None."""

    rank: int | None = Field(ge=1)


class ModelSpec(Schema):
    """Everything known of a base checkpoint before a weight is read."""

    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    dtype: str
    tied: bool
    matrices: tuple[MatrixSpec, ...]
    tensors: tuple[TensorSpec, ...]

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    @property
    def targeted(self) -> int:
        """Parameters of all targeted matrices."""
        return sum(matrix.size for matrix in self.matrices)
