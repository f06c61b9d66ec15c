"""Second moments of a stream of rows, summed in float32 blocks and float64 across segments."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.errors import NumericsError


class Moment(NamedTuple):
    """E[x x^T] (q, q) float32, or None where only the trace was asked for; tr E[x x^T]; rows."""

    matrix: Tensor | None
    trace: float
    tokens: int


class MomentAccumulator:
    """Sums x^T x over rows x; or, without a size, only the squared norm of other rows beside them.

    Rows of one segment are summed in order in float32 on their own device; finished segments are
    combined in float64 on the host in index order, so the sum depends on the segments alone.
    """

    def __init__(self, name: str, size: int | None) -> None:
        self.name = name
        self._size = size
        self._segment = 0
        self._partial: Tensor | None = None
        self._total = None if size is None else torch.zeros(size, size, dtype=torch.float64)
        self._trace: Tensor | None = None
        self._tokens = 0

    def add(self, rows: Tensor, segment: int, trace_of: Tensor | None = None) -> None:
        """Add rows (..., q); where `trace_of` (..., p) is given, the trace is that of its rows."""
        if segment != self._segment:
            self._close_segment()
            self._segment = segment
        rows = rows.detach().flatten(0, -2)
        self._tokens += rows.shape[0]
        if trace_of is not None:
            energy = torch.linalg.vector_norm(trace_of.detach(), dtype=torch.float64).square()
            self._trace = energy if self._trace is None else self._trace + energy
        if self._size is None:
            return
        rows = rows.float()
        if self._partial is None:
            self._partial = rows.T @ rows
        else:
            self._partial.addmm_(rows.T, rows)

    def result(self) -> Moment:
        """The mean over all rows. Raises NumericsError where a row was not finite."""
        self._close_segment()
        mean = None if self._total is None else self._total / max(self._tokens, 1)
        matrix = None if mean is None else mean.float()
        trace = 0.0 if mean is None else float(mean.trace())
        if self._trace is not None:
            trace = float(self._trace) / self._tokens
        if not math.isfinite(trace) or (matrix is not None and not torch.isfinite(matrix).all()):
            raise NumericsError(
                f"{self.name}: NaN or Inf in the activations or gradients (of {self._tokens} "
                "tokens); check the checkpoint with `svdllm evaluate`, or use --dtype float32"
            )
        return Moment(matrix, trace, self._tokens)

    def _close_segment(self) -> None:
        if self._partial is not None and self._total is not None:
            self._total += self._partial.double().cpu()
            self._partial = None
