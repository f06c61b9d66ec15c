"""Kernels that a GPU machine may have installed, where nothing is on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

KERNEL = """
def causal_conv1d_fn(*args, **kwargs):
    raise RuntimeError("Expected x.is_cuda() to be true, but got false.")
causal_conv1d_update = causal_conv1d_fn
"""
PROGRAM = """
import importlib, runpy, sys
from transformers.models.mamba2 import modeling_mamba2
from tests.kinds import derive
print(derive("mamba2").kind)
runpy.run_path("workers/checkpoint/load_check.py")
try:
    importlib.import_module("causal_conv1d")
except ImportError:
    print("blind")
"""


@pytest.mark.slow
def test_what_computes_on_a_gpu_alone_is_not_called_elsewhere(tmp_path: Path) -> None:
    """transformers takes it if it can be imported, wherever the tensors are."""
    (tmp_path / "causal_conv1d.py").write_text(KERNEL)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["mamba2", "blind"], done.stderr
