"""Kernels for hybrid layers from other packages, which compute on a GPU only."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers.integrations import hub_kernels

_library: Any = hub_kernels


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Let transformers compute with torch meanwhile, as it does for an export.

    Else it calls causal-conv1d, mamba-ssm or flash-linear-attention wherever they are installed,
    also for tensors that are not on a GPU.
    """
    ordinary = _library.is_torchdynamo_exporting
    _library.is_torchdynamo_exporting = lambda: True
    try:
        yield
    finally:
        _library.is_torchdynamo_exporting = ordinary
