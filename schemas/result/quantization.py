"""quantization.json: what `svdllm quantize` did to a checkpoint."""

import math
from collections import Counter

from pydantic import Field

from schemas.base import Schema
from schemas.model.spec import Encoding
from schemas.request.quantization import Scheme
from schemas.request.texts import Texts


class QuantisedLinear(Schema):
    """One linear layer with fewer bits.

    `group` is how many numbers of a row share a scale, None for all of them. `bits` counts all that
    is stored, a weight. `error` is |W - Q| / |W|, both times the root of the inputs' moment if
    there was a calibration: the relative error of the layer's output.
    """

    name: str
    shape: tuple[int, int]
    group: int | None
    bits: float
    error: float


class Quantization(Schema):
    """What was quantised, and how; `stay` are linear layers of the decoder that were not, each with
    the reason. Embeddings and head are never quantised. `source_files` has SHA-256 sums of the
    checkpoint that it was made from. `restated` counts its matrices that were stored otherwise
    before they were rounded to few bits: as rotated factors (plain), or multiplied out (dense).
    `text` is the SHA-256 of the calibration tokens, `group_size` what was asked for, and `dtype`
    that in which the model was computed.
    """

    checkpoint: str
    base: str
    scheme: Scheme
    method: str
    calibration: Texts = ()
    tokens: int = 0
    text: str | None = None
    group_size: int | None = None
    dtype: str | None = None
    damping: float | None = None
    seed: int
    device: str
    bytes_before: int
    bytes_after: int
    stay: dict[str, str] = Field(default_factory=dict)
    restated: dict[Encoding, int] = Field(default_factory=dict)
    linears: tuple[QuantisedLinear, ...]
    source_files: dict[str, str]

    @property
    def groups(self) -> dict[int | None, int]:
        """How many linear layers have groups of each size, the largest first, whole rows last."""
        found = Counter(linear.group for linear in self.linears)
        return dict(sorted(found.items(), key=lambda row: -(row[0] or 0)))

    @property
    def bits(self) -> float:
        """Bits a weight of the quantised layers, with their scales."""
        sizes = [math.prod(linear.shape) for linear in self.linears]
        stored = [size * one.bits for size, one in zip(sizes, self.linears, strict=True)]
        return sum(stored) / sum(sizes)
