"""Second moments of a stream of rows, summed in float32 blocks and exactly across segments."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from schemas.errors import NumericsError
from workers.process.failures import short_of_memory

_BLOCK = 2**22  # elements that are worked on at a time
_CACHED = 2**16  # the same on a CPU, element by element: intermediate results stay in its cache
_COLUMNS = 256  # of x^T x per product on a CPU
_HALVES = (torch.bfloat16, torch.float16)
PAGEABLE = (
    "sums of moments in pageable host memory, for the system would not lock more: slower, the same "
    "bits"
)


class Moment(NamedTuple):
    """E[x x^T] (q, q) float32, or its diagonal (1, q), or None if only the trace was wanted;
    tr E[x x^T]; number of rows.

    `fourth` is E[|x|^4] of gradient rows, which gives the noise of `matrix`; 0 for other rows.
    """

    matrix: Float[Tensor, "p q"] | None
    trace: float
    tokens: int
    fourth: float = 0.0


class MomentSums(NamedTuple):
    """Sums over all rows of some segments: of x^T x, and of squared norms.

    The sum of x^T x is `high` (q, q) float64 plus its rounding error `low` (q, q) float32, on the
    host, or both are its diagonal (1, q); None if only the trace was wanted. About 77 bits of it
    are right, so a mean in float32 does not depend on the order or the grouping in which segments
    were added. `energies` are squared norms of gradient rows, a float64 sum per segment; empty if
    the trace is the matrix's own. `fourths` are the sums of |x|^4 that go with them.
    """

    high: Float64[Tensor, "p q"] | None
    low: Float32[Tensor, "p q"] | None
    energies: tuple[float, ...]
    tokens: int
    fourths: tuple[float, ...] = ()

    def mean(self, name: str) -> Moment:
        """Return the mean over all rows. Raises NumericsError if a row was not finite."""
        matrix, trace = None, 0.0
        if self.high is not None and self.low is not None:
            matrix = torch.empty_like(self.high, dtype=torch.float32)
            diagonal = torch.zeros(len(matrix), dtype=torch.float64)
            square = matrix.shape[0] == matrix.shape[1]
            for rows in row_blocks(len(matrix), matrix.shape[1], _CACHED):
                mean = (self.high[rows] + self.low[rows]) / max(self.tokens, 1)
                matrix[rows] = mean.float()
                diagonal[rows] = mean.diagonal(rows.start) if square else mean.sum(1)
            trace = float(diagonal.sum())
        if self.energies:
            trace = math.fsum(self.energies) / max(self.tokens, 1)
        if not math.isfinite(trace) or (matrix is not None and not torch.isfinite(matrix).all()):
            raise NumericsError(
                f"{name}: NaN or Inf in the activations or gradients (of {self.tokens} "
                "tokens); check the checkpoint with `svdllm evaluate`, or use --dtype float32"
            )
        return Moment(matrix, trace, self.tokens, math.fsum(self.fourths) / max(self.tokens, 1))


def combine(one: MomentSums, other: MomentSums) -> MomentSums:
    """Add up sums over disjoint segments; the tensors of the first are changed in place."""
    if not (one.high is None or one.low is None or other.high is None or other.low is None):
        add_exactly(one.high, one.low, other.high)
        one.low.add_(other.low)
    return one._replace(
        energies=one.energies + other.energies,
        tokens=one.tokens + other.tokens,
        fourths=one.fourths + other.fourths,
    )


def add_exactly(
    high: Float64[Tensor, "p q"], low: Float32[Tensor, "p q"], value: Float[Tensor, "p q"]
) -> None:
    """high + low += value, all (p, q); `low` takes every rounding error of `high`.

    Knuth's two-sum, in blocks of rows on the device of `value`. If that device has no memory for a
    block, the host computes it, with the same bits.
    """
    elements = _BLOCK if value.is_cuda else _CACHED
    for rows in row_blocks(len(value), value.shape[1], elements):
        try:
            after, error = _two_sum(high[rows], low[rows], value[rows])
        except torch.OutOfMemoryError:
            after, error = _two_sum(high[rows], low[rows], value[rows].cpu())
        low[rows] = error
        high[rows] = after


def _two_sum(
    high: Float64[Tensor, "p q"], low: Float32[Tensor, "p q"], value: Float[Tensor, "p q"]
) -> tuple[Float64[Tensor, "p q"], Float32[Tensor, "p q"]]:
    """Return high + value, and low plus its rounding error, on the device of `value`."""
    added = value.double()
    before = high.to(added.device)
    after = before + added
    shadow = after - before
    error = (before - (after - shadow)) + (added - shadow)
    return after, low.to(added.device) + error.float()


class MomentAccumulator:
    """Sums x^T x over rows x; without a shape, only the squared norms of rows given with them. The
    shape is (q, q), or (1, q) if only the diagonal of x^T x is wanted.

    Rows of one segment are summed in order in float32 on their own device (rows of half precision
    on a GPU by its tensor cores: their products are exact in float32); finished segments are
    combined exactly on the host. Sums from a GPU are kept there in pinned memory, in blocks of rows
    that just fit a power of two: torch rounds pinned sizes up to one, and reuses them for the next
    sums. `adapted` is told when the system would not pin blocks.
    """

    def __init__(
        self, shape: tuple[int, int] | None, adapted: Callable[[str], None] = lambda _: None
    ) -> None:
        self._shape = shape
        self._adapted = adapted
        self._segment = 0
        self._partial: Tensor | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []  # per block of rows
        self._energies: dict[int, Tensor] = {}
        self._fourths: dict[int, Tensor] = {}
        self._tokens = 0

    def add(self, rows: Tensor, segment: int, trace_of: Tensor | None = None) -> None:
        """Add rows (..., q); if `trace_of` (..., p) is given, the trace is taken from its rows.

        If this runs out of memory, nothing was added.
        """
        if segment != self._segment:
            self._close_segment()
            self._segment = segment
        rows = rows.detach().flatten(0, -2)
        scalars: list[tuple[dict[int, Tensor], Tensor]] = []
        if trace_of is not None:
            scalars.append((self._energies, _norms(trace_of.detach()).square().sum()))
            if self._shape is not None:
                scalars.append((self._fourths, _norms(rows).pow(4).sum()))
        if self._shape is not None:
            add = _add_products if self._is_square else _add_squares
            self._partial = add(self._partial, rows)
        for sums, value in scalars:
            sums[segment] = sums[segment] + value if segment in sums else value
        self._tokens += rows.shape[0]

    def sums(self) -> MomentSums:
        """Return the sums over all rows so far; nothing may be added afterwards."""
        self._close_segment()
        energies, fourths = (
            tuple(float(value) for value in sums.values())
            for sums in (self._energies, self._fourths)
        )
        high = low = None
        if self._shape is not None:
            blocks = self._sums or [_zeros(self._shape)]
            self._sums = []
            high, low = blocks[0]
            if len(blocks) > 1:
                high, low = map(torch.cat, zip(*blocks, strict=True))
        return MomentSums(high, low, energies, self._tokens, fourths)

    @property
    def _is_square(self) -> bool:
        return self._shape is not None and self._shape[0] == self._shape[1]

    def _close_segment(self) -> None:
        if self._partial is None:
            return
        if not self._partial.is_cuda and self._is_square:
            _mirror(self._partial)
        elements = _BLOCK if self._partial.is_cuda else self._partial.numel()
        blocks = row_blocks(len(self._partial), self._partial.shape[1], elements)
        parts = [self._partial[rows] for rows in blocks]
        self._sums = self._sums or [self._started(part) for part in parts]
        for (high, low), part in zip(self._sums, parts, strict=True):
            add_exactly(high, low, part)
        self._partial = None

    def _started(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums for some rows; in pageable memory if the system pins no more."""
        try:
            return _zeros(part.shape, pinned=part.is_cuda)
        except RuntimeError as error:
            if not part.is_cuda or not short_of_memory(error):
                raise
        self._adapted(PAGEABLE)
        return _zeros(part.shape)


def _zeros(shape: Sequence[int], pinned: bool = False) -> tuple[Tensor, Tensor]:
    """Return empty sums on the host, and their rounding errors."""
    return (
        torch.zeros(*shape, dtype=torch.float64, pin_memory=pinned),
        torch.zeros(*shape, dtype=torch.float32, pin_memory=pinned),
    )


def _norms(rows: Float[Tensor, "... q"]) -> Float64[Tensor, "..."]:
    """Return the norm of each of rows (..., q), in float64."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)
    return norms


def _add_products(
    partial: Float32[Tensor, "q q"] | None, rows: Float[Tensor, "t q"]
) -> Float32[Tensor, "q q"]:
    """Return partial + rows^T rows; on a CPU only its upper triangle, in blocks of columns."""
    if rows.is_cuda and rows.dtype in _HALVES:
        if partial is None:
            return torch.mm(rows.T, rows, out_dtype=torch.float32)
        return torch.addmm(partial, rows.T, rows, out_dtype=torch.float32, out=partial)
    rows = rows.float()
    if rows.is_cuda:
        return rows.T @ rows if partial is None else partial.addmm_(rows.T, rows)
    size = rows.shape[1]
    partial = rows.new_zeros(size, size) if partial is None else partial
    for start in range(0, size, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        partial[columns, start:].addmm_(rows[:, columns].T, rows[:, start:])
    return partial


def _add_squares(
    partial: Float32[Tensor, "1 q"] | None, rows: Float[Tensor, "t q"]
) -> Float32[Tensor, "1 q"]:
    """Return partial + the diagonal of rows^T rows."""
    partial = rows.new_zeros(1, rows.shape[1], dtype=torch.float32) if partial is None else partial
    for block in row_blocks(*rows.shape):
        partial = partial + rows[block].float().square().sum(0, keepdim=True)
    return partial


def _mirror(upper: Tensor) -> None:
    """Fill in the part below the diagonal, which `_add_products` leaves out."""
    for start in range(0, len(upper), _COLUMNS):
        columns, after = slice(start, start + _COLUMNS), slice(start + _COLUMNS, None)
        upper[after, columns] = upper[columns, after].T


def row_blocks(rows: int, columns: int, elements: int = _BLOCK) -> Iterator[slice]:
    """Slice the rows of a matrix, to bound how much is worked on at a time."""
    step = max(1, elements // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
