"""Bytes of tensors and items that this process reads and writes, told to whoever listens."""

from collections.abc import Callable
from typing import Literal

Direction = Literal["read", "written"]
Listener = Callable[[Direction, str, int], None]

_listeners: set[Listener] = set()


def listen(listener: Listener) -> None:
    """Have `listener` told of all that is moved from now on: direction, kind, bytes."""
    _listeners.add(listener)


def moved(direction: Direction, kind: str, size: int) -> None:
    """Tell that bytes were moved; `kind` is that of an item, or "weights"."""
    for listener in _listeners:
        listener(direction, kind, size)
