"""Second moments of a stream, against one sum over all rows in float64."""

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import NumericsError
from workers.calibration import moments
from workers.calibration.moments import Moment, MomentAccumulator, MomentSums, add_exactly, combine

# Products and sums of 60 float32 rows: a few eps (1e-7) of the diagonal.
ROUNDING = 1e-6


def rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) + 0.5


def accumulate(
    parts: list[tuple[Tensor, int]], size: int | None = 7, trace_of: list[Tensor] | None = None
) -> Moment:
    sums = MomentAccumulator(None if size is None else (size, size))
    for i, (part, segment) in enumerate(parts):
        sums.add(part, segment, trace_of=trace_of[i] if trace_of else None)
    return sums.sums().mean("layers.0.mlp.input")


def matrix(moment: Moment) -> Tensor:
    assert moment.matrix is not None
    return moment.matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("segments", [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 4, 5]])
def test_it_is_the_mean_outer_product(dtype: torch.dtype, segments: list[int]) -> None:
    parts = [rows(20, 7, seed=i).to(dtype) for i in range(3)]
    found = accumulate(list(zip(parts, segments, strict=True)))
    exact = torch.cat(parts).double()
    assert (matrix(found) - exact.T @ exact / 60).abs().max() < ROUNDING * 60 / 7
    assert found.tokens == 60


def test_leading_dimensions_are_rows() -> None:
    batch = rows(2, 3, 5, 7)
    assert torch.equal(
        matrix(accumulate([(batch, 0)])), matrix(accumulate([(batch.reshape(30, 7), 0)]))
    )


def test_the_matrix_is_float32_and_symmetric() -> None:
    found = matrix(accumulate([(rows(20, 7), 0)]))
    assert found.dtype == torch.float32
    assert (found - found.T).abs().max() < ROUNDING


def test_the_trace_is_that_of_the_matrix() -> None:
    found = accumulate([(rows(20, 7), 0), (rows(20, 7, seed=1), 1)])
    assert found.trace == pytest.approx(float(matrix(found).trace()), rel=ROUNDING)


def test_the_trace_may_be_that_of_other_rows() -> None:
    others = [rows(20, 3, seed=5), rows(20, 3, seed=6)]
    found = accumulate([(rows(20, 7), 0), (rows(20, 7, seed=1), 1)], trace_of=others)
    expected = float(torch.cat(others).double().square().sum()) / 40
    assert found.trace == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("segments", [(0, 0), (0, 1)])
def test_the_fourth_moment_is_that_of_the_rows_themselves(segments: tuple[int, int]) -> None:
    parts = [rows(20, 7), rows(20, 7, seed=1)]
    others = [rows(20, 3, seed=5), rows(20, 3, seed=6)]
    found = accumulate(list(zip(parts, segments, strict=True)), trace_of=others)
    expected = torch.cat(parts).double().square().sum(1).square().mean()
    assert found.fourth == pytest.approx(float(expected), rel=ROUNDING)


def test_without_a_size_there_is_only_a_trace() -> None:
    others = [rows(20, 3, seed=5)]
    found = accumulate([(rows(20, 7), 0)], size=None, trace_of=others)
    assert (found.matrix, found.fourth) == (None, 0.0)
    assert found.trace == pytest.approx(float(others[0].double().square().mean() * 3), rel=1e-6)
    assert found.tokens == 20


def test_segments_are_combined_in_float64() -> None:
    """1e8 + 1 - 1e8 is 0 in float32 addition; here each segment is one row of one feature."""
    parts = [(torch.tensor([[1e4]]), 0)] + [(torch.tensor([[1.0]]), i) for i in range(1, 101)]
    found = matrix(accumulate(parts, size=1))
    assert float(found) * 101 == pytest.approx(1e8 + 100, rel=1e-7)
    one_segment = matrix(accumulate([(part, 0) for part, _ in parts], size=1))
    assert float(one_segment) * 101 == pytest.approx(1e8, rel=1e-7)


def test_where_segments_end_does_not_depend_on_how_rows_come() -> None:
    """A segment is summed in order: what matters is the micro-batches, not their grouping."""
    parts = [rows(10, 7, seed=i) for i in range(4)]
    together = accumulate([(parts[0], 0), (parts[1], 0), (parts[2], 1), (parts[3], 1)])
    first = accumulate([(parts[0], 0), (parts[1], 0)])
    second = accumulate([(parts[2], 0), (parts[3], 0)])
    assert (matrix(first) + matrix(second) - 2 * matrix(together)).abs().max() < ROUNDING * 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused_by_name(value: float) -> None:
    bad = rows(20, 7)
    bad[3, 4] = value
    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.input: NaN or Inf.*40 tokens"):
        accumulate([(rows(20, 7), 0), (bad, 1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_trace_that_is_not_finite_is_refused(value: float) -> None:
    bad = rows(20, 3)
    bad[3, 1] = value
    with pytest.raises(NumericsError, match="NaN or Inf"):
        accumulate([(rows(20, 7), 0)], size=None, trace_of=[bad])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_what_high_loses_low_keeps(order: tuple[int, ...]) -> None:
    values = [torch.full((3, 3), value) for value in (1e30, 1.0, -1e30)]
    high, low = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3)
    for index in order:
        add_exactly(high, low, values[index])
    assert torch.equal(high + low, torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("cuts", [(3,), (1, 4), (2, 3, 7), (1, 2, 3, 4, 5, 6, 7)])
def test_the_grouping_of_segments_changes_no_bit(cuts: tuple[int, ...]) -> None:
    """Eight segments whose sums differ by many orders of magnitude, in parts of any size."""
    segments = [rows(9, 33, seed=i) * 10.0 ** (i * 5 % 7) for i in range(8)]
    bounds = (0, *cuts, 8)
    whole, *parts = (
        sums_of({i: segments[i] for i in part})
        for part in [range(8), *(range(a, b) for a, b in pairwise(bounds))]
    )
    together, alone = reduce(combine, parts).mean("parts"), whole.mean("whole")
    assert torch.equal(matrix(together), matrix(alone))
    assert together[1:] == alone[1:]


def sums_of(segments: dict[int, Tensor]) -> MomentSums:
    """Sums of rows, one part a segment, and of their squared norms."""
    accumulator = MomentAccumulator((33, 33))
    for index, part in segments.items():
        accumulator.add(part, index, trace_of=part)
    return accumulator.sums()


@pytest.mark.parametrize("size", [7, None])
def test_where_memory_runs_out_nothing_is_added(
    monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    expected = accumulate([(rows(20, 7), 0)], size, [rows(20, 3)])
    sums = MomentAccumulator(None if size is None else (size, size))

    def lack(*_: object, **__: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(moments, "_add_products", lack)
        patch.setattr(torch.linalg, "vector_norm", lack if size is None else torch.linalg.norm)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            sums.add(rows(20, 7, seed=1), 0, trace_of=rows(20, 3, seed=1))
    sums.add(rows(20, 7), 0, trace_of=rows(20, 3))
    found = sums.sums().mean("layers.0.mlp.input")
    assert (found.trace, found.tokens) == (expected.trace, expected.tokens)
    if size is not None:
        assert torch.equal(matrix(found), matrix(expected))


def test_a_block_without_device_memory_is_added_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three blocks, the second of which fails once: to the bit, each is added once."""
    monkeypatch.setattr(moments, "_CACHED", 4 * 12)
    value = rows(12, 12)
    expected = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 12)
    add_exactly(*expected, value)
    two_sum, calls = moments._two_sum, []

    def lacking(*parts: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(parts[0]))
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return two_sum(*parts)

    monkeypatch.setattr(moments, "_two_sum", lacking)
    found = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 12)
    add_exactly(*found, value)
    assert calls == [4, 4, 4, 4]
    assert all(map(torch.equal, found, expected))


# --- what a GPU has of its own, by stubs ------------------------------------------------------


class OnDevice(Tensor):
    """A tensor of the host that is taken for one of a GPU."""

    is_cuda = True


def on_device(value: Tensor) -> Tensor:
    return value.as_subclass(OnDevice)


def test_products_of_halves_are_added_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of the first micro-batch is the sum of all: no other of its size is made."""
    made: list[int] = []

    def product(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        made.append(a.shape[0])
        return a.to(out_dtype) @ b.to(out_dtype)

    def add(
        total: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        added = total + a.to(out_dtype) @ b.to(out_dtype)
        if out is None:
            made.append(a.shape[0])
            return added
        return out.copy_(added)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch, "addmm", add)
    parts = [on_device(rows(20, 7, seed=i).bfloat16()) for i in range(3)]
    total: Tensor | None = None
    for part in parts:
        total = moments._add_products(total, part)
    exact = torch.cat(parts).double()
    assert made == [7]
    assert total is not None
    assert (total - exact.T @ exact).abs().max() < ROUNDING * 60


def pinning(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], bool], message: str
) -> list[int]:
    """Stand in for what pins memory, and refuse some: the bytes that are asked for, in turn."""
    zeros, asked = torch.zeros, list[int]()

    def allocate(*shape: int, pin_memory: bool = False, **options: Any) -> Tensor:
        found = zeros(*shape, **options)
        if pin_memory:
            asked.append(found.nbytes)
            if refused(len(asked)):
                raise RuntimeError(message)
        return found

    monkeypatch.setattr(torch, "zeros", allocate)
    return asked


def summed_on_device(adapted: Callable[[str], None]) -> MomentSums:
    sums = MomentAccumulator((12, 12), adapted)
    for segment in range(3):
        sums.add(on_device(rows(20, 12, seed=segment)), segment)
    return sums.sums()


@pytest.mark.parametrize(
    ("refused", "told"),
    [(lambda _: False, 0), (lambda number: number == 4, 1), (lambda _: True, 3)],
    ids=["never", "once", "always"],
)
def test_sums_of_a_gpu_are_pinned_or_else_pageable(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], bool], told: int
) -> None:
    """To the bit, whatever is refused. Each block fills the power of two that torch takes for it,
    but for what is less than a row of it, and the last one."""
    with monkeypatch.context() as patch:
        pinning(patch, lambda _: False, "")
        expected = summed_on_device(lambda _: None)
    monkeypatch.setattr(moments, "_BLOCK", 64)  # elements: five rows of twelve
    notes: list[str] = []
    asked = pinning(monkeypatch, refused, "CUDA error: out of memory\nand more about it")
    found = summed_on_device(notes.append)
    assert set(asked) <= {8 * 60, 4 * 60, 8 * 24, 4 * 24}
    assert notes == [moments.PAGEABLE] * told
    assert found.high is not None
    assert found.low is not None
    assert expected.high is not None
    assert expected.low is not None
    assert torch.equal(found.high, expected.high)
    assert torch.equal(found.low, expected.low)


def test_another_failure_to_pin_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    pinning(monkeypatch, lambda _: True, "CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        summed_on_device(lambda _: None)
