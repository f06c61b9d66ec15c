"""The shape of a model: its targeted matrices, and the tensors that pass through unchanged."""

import math
from collections.abc import Collection
from typing import Literal

from schemas.base import Schema
from schemas.location import Location
from schemas.model.dtypes import ITEM_BYTES

Side = Literal["output", "input"]
Encoding = Literal["pivoted", "pivoted-columns", "plain", "dense", "pruned-rows", "pruned-columns"]
PRUNED: tuple[Encoding, ...] = ("pruned-rows", "pruned-columns")
Factors = Literal["pivoted", "plain"]

Role = Literal["layer", "embedding", "head", "outside", "passing", "tied"]
"""What the model does with a tensor when it reads text.

It belongs to a layer, embeds tokens, gives logits, or has another part outside the layers. It is
passing if text does not reach it (a vision tower), and tied if the embedding stands for it.
"""


class TensorSpec(Schema):
    """A tensor of a checkpoint, known from a file header; `dtype` is safetensors' name of it.

    Its content begins at byte `offset` of the file; None if only config.json is known. `layer` is
    the decoder layer that it belongs to, if any. If the files hold it quantised, `parts` are its
    values and its scales, one for every `block` of rows and columns.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None
    role: Role = "outside"
    layer: int | None = None
    parts: tuple["TensorSpec", ...] = ()
    block: tuple[int, int] = (1, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of its content."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class MatrixSpec(Schema):
    """A targeted weight W (m, n) = (`out_features`, `in_features`).

    `name` is relative to the base model: `layers.3.self_attn.q_proj`. Its `path` in the layer is
    self_attn.q_proj; `stored` is its name in the files, without the leaf. `reads` is equal for
    matrices of a layer that receive the same input. The files hold its transpose if `transposed`.
    `column_parallel` tells whether tensor parallelism cuts its outputs across ranks, by the
    family's own plan.

    If the files hold several matrices as one (q, k and v), `split` is how many rows each has, and
    this is number `part` of them: layers.3.self_attn.qkv_proj.0.

    If its outputs are the neurons of an MLP, or its inputs are, `neurons` is the path of the matrix
    that reads them: element by element, they are all that lies between.
    """

    name: str
    layer: int
    path: str
    reads: str
    neurons: str = ""
    stored: str
    out_features: int
    in_features: int
    bias: bool
    transposed: bool = False
    column_parallel: bool = False
    split: tuple[int, ...] = ()
    part: int = 0

    @property
    def module(self) -> str:
        """The name of the linear layer that it is, or is a part of."""
        return self.name.rpartition(".")[0] if self.split else self.name

    @property
    def is_head(self) -> bool:
        """Whether it gives logits. It is in no layer, and counts to the last one."""
        return self.path == self.name

    @property
    def written(self) -> str:
        """Its name in the files of a compressed checkpoint, without the tails of its tensors."""
        return f"{self.stored}.{self.part}" if self.split else self.stored

    @property
    def rows(self) -> slice:
        """Its rows of what is stored."""
        start = sum(self.split[: self.part])
        return slice(start, start + self.out_features)

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

    @property
    def neuron_count(self) -> int:
        """How many of an MLP's neurons it reads or writes, if it does."""
        return self.in_features if self.pruned == "pruned-columns" else self.out_features

    @property
    def pruned(self) -> Encoding:
        """How it is stored once neurons are removed: it reads them, or writes them."""
        return "pruned-columns" if self.neurons == self.path else "pruned-rows"

    def encoding(self, factors: Factors) -> Encoding:
        """How it is stored once it is cut: pivots are on the side that ranks do not share out."""
        columns = factors == "pivoted" and self.column_parallel
        return "pivoted-columns" if columns else factors

    def parameters_at(self, factors: Factors, rank: int | None, pruned: bool) -> int:
        """Parameters of it at a rank, or of it pruned, as it is stored unless pivots fall back."""
        return self.stored_parameters(self.pruned if pruned else self.encoding(factors), rank)

    def stored_parameters(self, encoding: Encoding, rank: int | None) -> int:
        """Parameters of it as stored, without its bias and its row order; dense without a rank.

        The rank of a pruned one is the number of neurons that are left.
        """
        if encoding == "dense" or rank is None:
            return self.size
        if encoding == "pruned-rows":
            return rank * self.in_features
        if encoding == "pruned-columns":
            return rank * self.out_features
        factors: Factors = "plain" if encoding == "plain" else "pivoted"
        return factor_parameters(factors, rank, self.out_features, self.in_features)


def factor_parameters(factors: Factors, rank: int, out_features: int, in_features: int) -> int:
    """Parameters of W' (m, n) at rank k: k (m + n), or k (m + n - k) if pivoted (PIFA, 2025)."""
    return rank * (out_features + in_features - (rank if factors == "pivoted" else 0))


class Neurons(Schema):
    """The neurons of an MLP: h = what lies between the `writers` (q, n) and the `reader` (m, q),
    element by element, as in h = act(gate x) * (up x), y = down h.
    """

    writers: tuple[MatrixSpec, ...]
    reader: MatrixSpec

    @property
    def name(self) -> str:
        """The name of their reader, which only they have."""
        return self.reader.name

    @property
    def count(self) -> int:
        """How many there are: q."""
        return self.reader.in_features

    @property
    def matrices(self) -> tuple[MatrixSpec, ...]:
        return *self.writers, self.reader

    def within(self, names: Collection[str]) -> bool:
        """Whether all their matrices are among those of these names."""
        return all(matrix.name in names for matrix in self.matrices)

    def parameters(self, kept: int) -> int:
        """Parameters of all their matrices if some are kept: kept (n + ... + m)."""
        return sum(matrix.stored_parameters(matrix.pruned, kept) for matrix in self.matrices)


def whole(parameters: float) -> int:
    """Truncate a number of parameters despite rounding: (1 - 0.8) * 10 gives 2, not 1.9999999."""
    return int(parameters * (1 + 1e-12))


class DecoderSpec(Schema):
    """What headers say of any checkpoint whose layers can be built: a base, or a compressed one.

    `context` is the number of tokens that it was made for, if config.json says so; `model_type` is
    the base's in any case. `path` is the name of the list of layers in the model; `tuples` tells
    which layers return a tuple, `ends` which of their modules' products are only added to the
    result. `modules` are those outside the layers that text goes through. `weights` is the URL of
    its weight files; None if they are beside config.json.
    """

    model_type: str
    layers: int
    hidden_size: int
    vocab_size: int
    context: int | None
    tied: bool
    path: str
    tuples: tuple[bool, ...]
    ends: tuple[tuple[str, ...], ...]
    modules: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    weights: Location | None = None

    @property
    def parameters(self) -> int:
        """Parameters of the model, tied ones counted once, without row orders."""
        mine = [tensor for tensor in self.tensors if tensor.role != "tied"]
        return sum(math.prod(t.shape) for t in mine if t.dtype.startswith(("F", "BF")))

    def held(self, layers: range) -> list[TensorSpec]:
        """Return the tensors that a shard of these layers reads: with the first layer the
        embedding, at the end the head (even with no layer), and always what else is outside.
        """
        first, last = 0 in layers, layers.stop == self.layers
        roles = {"outside", *(["embedding"] if first or (last and self.tied) else [])}
        roles |= {"head"} if last else set()
        return [t for t in self.tensors if t.role in roles or t.layer in layers]


class ModelSpec(DecoderSpec):
    """Everything known of a base checkpoint before a weight is read.

    `matrices` are those of the layers, or those that are targeted. `head` gives logits; None if the
    files do not hold it as it is. `wide` names the neurons that a device has no room to order.
    """

    dtype: str
    matrices: tuple[MatrixSpec, ...]
    head: MatrixSpec | None = None
    wide: tuple[str, ...] = ()

    @property
    def targeted(self) -> int:
        """Parameters of all targeted matrices."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def neurons(self) -> list[Neurons]:
        """The neurons of its MLPs that can be removed."""
        found: dict[tuple[int, str], list[MatrixSpec]] = {}
        for matrix in self.matrices:
            if matrix.neurons:
                found.setdefault((matrix.layer, matrix.neurons), []).append(matrix)
        groups = []
        for group in found.values():
            [reader] = [matrix for matrix in group if matrix.path == matrix.neurons]
            writers = tuple(matrix for matrix in group if matrix is not reader)
            groups.append(Neurons(writers=writers, reader=reader))
        return groups

    @property
    def split(self) -> dict[str, tuple[int, ...]]:
        """How many rows each part has of the linear layers of which parts are targeted."""
        return {matrix.module: matrix.split for matrix in self.matrices if matrix.split}

    @property
    def linears(self) -> dict[str, list[MatrixSpec]]:
        """The targeted matrices by linear layer, named as in the files, with those parts of it that
        are not targeted.
        """
        found: dict[str, dict[int, MatrixSpec]] = {}
        for matrix in self.matrices:
            found.setdefault(matrix.stored, {})[matrix.part] = matrix
        return {stored: _whole(parts) for stored, parts in found.items()}


def _whole(parts: dict[int, MatrixSpec]) -> list[MatrixSpec]:
    one = next(iter(parts.values()))
    path = one.path.rpartition(".")[0]
    return [
        parts.get(part)
        or one.model_copy(
            update={
                "name": f"{one.module}.{part}",
                "path": f"{path}.{part}",
                "part": part,
                "out_features": rows,
            }
        )
        for part, rows in enumerate(one.split or (one.out_features,))
    ]
