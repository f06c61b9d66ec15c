"""The compressed checkpoint as a plan: which tensor goes into which file, and from where."""

import math
from typing import Literal

from pydantic import PositiveInt

from schemas.base import Schema
from schemas.model.dtypes import ITEM_BYTES
from schemas.model.spec import PRUNED, Encoding


class FactorSource(Schema):
    """A tensor of a committed item of factors."""

    key: str
    tensor: str


class OutputTensor(Schema):
    """One tensor of the checkpoint, from the base under `base` (or the transpose of what is there;
    then, of that, only the rows (start, stop) if any are named), or from the run's factors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: str | None = None
    transposed: bool = False
    rows: tuple[int, int] | None = None
    factors: FactorSource | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class OutputFile(Schema):
    """One safetensors shard of the checkpoint."""

    name: str
    tensors: tuple[OutputTensor, ...]


class SpectrumFacts(Schema):
    """How the spectrum and the basis of a matrix came about; the fields are as in `Basis`."""

    through: Literal["left", "right", "none"]
    nats: float | None
    tokens: int
    shrinkage: float | None
    fallbacks: tuple[str, ...]
    remarks: tuple[str, ...]


class NeuronsFacts(Schema):
    """How the order in which neurons are removed came about; fields are as in `SpectrumFacts`."""

    nats: float
    shrinkage: float | None
    fallbacks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class MatrixResult(Schema):
    """The result for one matrix: a row of compression.json.

    Losses are what the truncation minimises, per token: predicted is the sum of the dropped
    eigenvalues, achieved is measured on the factors in float64. `rounding` is the relative
    Frobenius error that storing the factors in the checkpoint's dtype adds to W'. `nats` is the
    predicted increase of the mean token loss, if gradients were taken; `energy` the loss of
    removing the whole matrix, None if not known. `shrinkage` is its gradient moment's, given or
    chosen. The rank of a pruned one is the number of neurons that are left; the matrix that reads
    them has the loss of the removal, those that write them have none.
    """

    name: str
    shape: tuple[PositiveInt, PositiveInt]
    encoding: Encoding
    rank: int | None
    parameters: int
    predicted_loss: float
    achieved_loss: float
    energy: float | None
    nats: float | None = None
    rounding: float = 0.0
    interpolation_max: float | None = None
    shrinkage: float | None = None
    fallbacks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_pruned(self) -> bool:
        """Whether it lacks some neurons."""
        return self.encoding in PRUNED

    @property
    def full(self) -> int:
        """Its rank if nothing was removed; of a pruned one, how many neurons there were."""
        m, n = self.shape
        return {"pruned-rows": m, "pruned-columns": n}.get(self.encoding, min(m, n))

    @property
    def cut_at(self) -> int | None:
        """The eigenvalues of its spectrum that are kept; None if it is not cut there."""
        return None if self.is_pruned else self.rank
