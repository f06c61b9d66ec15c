"""The shape of a model: its targeted matrices, and the tensors that pass through unchanged."""

import math
from typing import Literal

from schemas.base import Schema
from schemas.location import Location
from schemas.model.architectures import ARCHITECTURES, Architecture, Side
from schemas.model.dtypes import ITEM_BYTES

Encoding = Literal["pivoted", "plain", "dense"]
Factors = Literal["pivoted", "plain"]


class TensorSpec(Schema):
    """A tensor of a checkpoint, known from a file header; `dtype` is safetensors' name of it.

    Its content begins at byte `offset` of the file; None if only config.json is known.
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
    the tokens that reach it: 1, except for an expert.
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
        """Parameters of W, without the bias."""
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
    """Parameters of W' (m, n) at rank k: k (m + n), or k (m + n - k) if pivoted (PIFA, 2025)."""
    return rank * (out_features + in_features - (rank if factors == "pivoted" else 0))


def whole(parameters: float) -> int:
    """Truncate a number of parameters despite rounding: (1 - 0.8) * 10 gives 2, not 1.9999999."""
    return int(parameters * (1 + 1e-12))


class DecoderSpec(Schema):
    """What headers say of any checkpoint whose layers can be built: a base, or a compressed one.

    `low_rank` tells whether it is compressed; `model_type` is the base's in any case.
    `weights` is the URL of its weight files; None if they are beside config.json.
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
        """Parameters of the model, tied ones counted once, without row orders."""
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
