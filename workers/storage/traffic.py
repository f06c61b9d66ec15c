"""Bytes of tensors and items that this process reads and writes, reported to listeners."""

from collections.abc import Callable
from typing import Literal

Direction = Literal["read", "written"]
Listener = Callable[[Direction, str, int], None]

_listeners: set[Listener] = set()


def listen(listener: Listener) -> None:
    """Have `listener` called for all later transfers with direction, kind and bytes."""
    _listeners.add(listener)


def moved(direction: Direction, kind: str, size: int) -> None:
    """Report moved bytes; `kind` is the kind of an item, or "weights"."""
    for listener in _listeners:
        listener(direction, kind, size)
