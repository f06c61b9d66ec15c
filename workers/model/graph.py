"""What the graph of a layer's forward tells of the product of a linear: what is made of it."""

import itertools
from collections.abc import Sequence, Set
from functools import cache
from typing import Any

import torch
from torch import Tensor

Readers = dict[Any, list[Any]]  # of each node of a graph, the nodes that read its result

_SUMS = frozenset(
    f"{name}Backward0" for name in ("Add", "Alias", "Clone", "ToCopy", "UnsafeView", "View")
)
_ELEMENT_BY_ELEMENT = frozenset(
    {"Add", "Alias", "Clamp", "Clone", "Div", "Elu", "Erf", "Exp", "Expm1", "Gelu", "Hardswish"}
    | {"Hardtanh", "LeakyRelu", "Minimum", "Mish", "Mul", "Neg", "Pow", "Relu", "Rsub"}
    | {"Sigmoid", "Silu", "Softplus", "Sqrt", "Sub", "Tanh", "Threshold", "ToCopy", "Where"}
)
_KEEP_ROWS = frozenset({"Alias", "Clamp", "Clone", "ToCopy"})


def readers_of(output: Tensor) -> Readers:
    """Return the nodes of the graph that lead to a result, and what reads each of them; none if the
    forward was without gradients.
    """
    if output.grad_fn is None:
        return {}
    readers: Readers = {output.grad_fn: []}
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        reader = waiting.pop()
        for node, _ in reader.next_functions:
            if node is not None:
                waiting += [] if node in readers else [node]
                readers.setdefault(node, []).append(reader)
    return readers


def is_only_added(node: Any, readers: Readers) -> bool:
    """Whether a product is only added to the result: nothing reads its values."""
    return all(
        reader.name() in _SUMS and is_only_added(reader, readers) for reader in readers[node]
    )


def written_by(given: Tensor, readers: Readers, products: Set[Any]) -> set[Any]:
    """Return the products that a tensor is made of, element by element; none if it is made of
    anything else, or if anything else reads them, or it, or what is in between.

    A part of a product is an element of it: whether parts are as wide as the tensor is not asked.
    """
    found: set[Any] = set()
    between: set[Any] = set()
    waiting: list[Any] = [given.grad_fn] if len(readers.get(given.grad_fn, ())) == 1 else []
    while waiting:
        node = waiting.pop()
        below = {below for below, _ in node.next_functions if below is not None}
        if node in products:
            found.add(node)
        elif _is_element_by_element(node) or (_kind(node) in _RANGES and below <= products):
            between.add(node)
            waiting += below - between
        elif not _is_a_number(node):
            return set()
    inside = all(
        reader in between
        for node in (*found, *between)
        for reader in readers[node]
        if node is not given.grad_fn
    )
    return found if inside else set()


def _is_element_by_element(node: Any) -> bool:
    """Whether each number of a node's result is made of one number of each of what it reads."""
    function = getattr(node, "_forward_cls", None)  # of one that is not torch's own
    return _kind(node) in _ELEMENT_BY_ELEMENT or bool(function and _takes_each_alone(function))


def _is_a_number(node: Any) -> bool:
    """Whether a node stands for a parameter that is one number, the same for all elements."""
    parameter = getattr(node, "variable", None)
    return parameter is not None and parameter.numel() == 1


@cache
def _takes_each_alone(function: Any) -> bool:
    """Whether a function does with many numbers what it does with each."""
    numbers = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    try:
        with torch.no_grad():
            together = function.apply(numbers).flatten()
            alone = [function.apply(number) for number in numbers.view(6, 1)]
            return torch.allclose(together, torch.cat(alone))
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return False  # it is called in another way


def split_of(node: Any, rows: int, readers: Readers) -> tuple[int, ...]:
    """Return how many of its rows each part of a product has that is only taken apart; none if it
    is read as one, or if its parts are not all of its rows, each once.
    """
    parts = sorted(_taken(node, -1, rows, readers))
    starts, stops = [start for start, _ in parts], [stop for _, stop in parts]
    if len(parts) < 2 or [*starts, rows] != [0, *stops]:
        return ()
    return tuple(stop - start for start, stop in parts)


def _taken(node: Any, axis: int, rows: int, readers: Readers) -> set[tuple[int, int]]:
    """Return the ranges of rows that are read of a tensor; rows are along `axis`, from the end."""
    found: set[tuple[int, int]] = set()
    for reader in readers[node]:
        kind = _kind(reader)
        if kind in _RANGES and _axes(reader, "_saved_dim") == [axis]:
            found.update(_RANGES[kind](reader, rows))
        elif kind == "Transpose":
            axes = _axes(reader, "_saved_dim0", "_saved_dim1")
            there = axes[1 - axes.index(axis)] if axis in axes else axis
            found |= _taken(reader, there, rows, readers)
        elif kind in _KEEP_ROWS or (axis == -1 and _keeps_last(reader, kind, rows)):
            found |= _taken(reader, axis, rows, readers)
        else:
            found.add((0, rows))
    return found


def _keeps_last(node: Any, kind: str, rows: int) -> bool:
    """Whether a node keeps the last dimension as it is; a view into heads does not, even of one."""
    if kind in ("UnsafeView", "View"):
        return _shape(node)[-1] == rows and len(_shape(node)) <= len(node._saved_self_sym_sizes)
    return kind == "Unsqueeze" and _shape(node)[-1] == rows


def _of_slice(node: Any, rows: int) -> list[tuple[int, int]]:
    ends = slice(_signed(node._saved_start), _signed(node._saved_end), node._saved_step)
    start, stop, step = ends.indices(rows)
    return [(start, stop) if step == 1 else (0, rows)]


def _of_split(node: Any, rows: int) -> list[tuple[int, int]]:
    size = node._saved_split_size
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _of_sizes(node: Any, _: int) -> list[tuple[int, int]]:
    stops = itertools.accumulate(node._saved_split_sizes, initial=0)
    return [(start, stop) for start, stop in itertools.pairwise(stops) if start < stop]


_RANGES = {"Slice": _of_slice, "Split": _of_split, "SplitWithSizes": _of_sizes}


def _signed(number: int) -> int:
    """Return a number that torch shows without its sign."""
    return number - 2**64 if number >= 2**63 else number


def _kind(node: Any) -> str:
    """Return what a node computes; nothing if it is not torch's own."""
    kind, _, number = node.name().partition("Backward")
    return kind if number else ""


def _shape(node: Any) -> Sequence[int]:
    """Return the shape of a node's first result."""
    shape: Sequence[int] = node._input_metadata[0].shape
    return shape


def _axes(node: Any, *names: str) -> list[int]:
    """Return dimensions that a node works on, counted from the end."""
    dims = len(_shape(node))
    return [_signed(getattr(node, name)) % dims - dims for name in names]
