"""A call in a process of its own, whose memory nobody has used before."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `call` returns in a new interpreter."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments, **options).result()
