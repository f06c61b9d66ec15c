"""Which load a checkpoint gets by its size, and what ends a load: only a fault fails a check."""

import errno
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLConfig

from schemas.errors import VerificationError
from schemas.result.manifest import Check
from tests.reports import quantization
from tests.unit.checkpoint.conftest import WEIGHTS, change, make, seal
from workers.checkpoint import load_check, load_part, verify
from workers.checkpoint.verify import require, verify_checkpoint
from workers.process.cores import available_cores

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PART = "first and last layer load with plain transformers"
ENDS = """
echo '{"name": "threads", "passed": true, "detail": "'$OMP_NUM_THREADS'"}'
printf '{"name": "cut sh'
"""  # of a shell, which has said so long before its time is over, however busy the machine is


def of_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# --- how much is loaded -----------------------------------------------------------------------


@pytest.mark.usefixtures("loads_here")
def test_of_a_large_model_two_layers_are_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "FULL_LOAD_BYTES", 0)
    monkeypatch.setattr(verify, "UNASKED", 0)
    checks = verify_checkpoint(checkpoint, published=False)
    assert [check for check in checks if not check.passed] == []
    names = of_name(checks)
    assert names[PART].detail.startswith("layers 0 and 4, ")
    assert names["finite loss"].detail.endswith(" nats")
    assert "loads with plain transformers" not in names
    assert "save_pretrained round trip" not in names


@pytest.mark.slow
def test_a_small_model_is_loaded_whole_without_what_is_here(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other Python runs this file at its start."""
    marker = tmp_path / "ran"
    (tmp_path / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks = of_name(verify_checkpoint(checkpoint, published=False))
    assert all(check.passed for check in checks.values())
    assert {"loads with plain transformers", "save_pretrained round trip"} < checks.keys()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("free", "limit", "unasked", "depth", "saved"),
    [
        (10**9, 10**9, 10**9, "whole", True),
        (10**9, 10**9, 0, "whole", False),
        (10**9, 0, 0, "part", False),
        (1000, 10**9, 0, "part", False),
    ],
)
def test_size_and_memory_choose_the_load(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    limit: int,
    unasked: int,
    depth: str,
    saved: bool,
) -> None:
    clean = mock.Mock(return_value=[])
    monkeypatch.setattr(verify, "_clean_process", clean)
    monkeypatch.setattr(verify, "available_bytes", lambda: free)
    monkeypatch.setattr(verify, "FULL_LOAD_BYTES", limit)
    monkeypatch.setattr(verify, "UNASKED", unasked)
    verify_checkpoint(checkpoint, published=False)
    assert clean.call_args.args[0][1:] == [depth, str(free), *(["--save"] if saved else [])]


@pytest.mark.parametrize(("bits", "depth"), [(8, "whole"), (4, "part"), (None, "whole")])
def test_what_is_quantised_takes_more_memory_the_fewer_bits_it_has(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: int | None,
    depth: str,
) -> None:
    """With eight times its size. It is not saved again: transformers cannot save every kind."""
    if bits:
        (checkpoint / "quantization.json").write_text(quantization(bits).model_dump_json())
    free = 8 * (checkpoint / WEIGHTS).stat().st_size
    clean = mock.Mock(return_value=[])
    monkeypatch.setattr(verify, "_clean_process", clean)
    monkeypatch.setattr(verify, "available_bytes", lambda: free)
    verify_checkpoint(seal(checkpoint), published=False)
    assert clean.call_args.args[0][1] == depth
    assert ("--save" in clean.call_args.args[0]) is (bits is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_a_part_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    folder, found = make(tmp_path / "part", family), dict[str, Any]()
    assert load_check._load_part(folder, 10**9, found).startswith("layers 0 and 4, ")
    stored, kept = load_file(folder / WEIGHTS), found["model"].state_dict()
    for name, tensor in kept.items():
        before = name.replace("layers.1.", "layers.4.")
        assert torch.equal(tensor, stored.get(before, stored["model.embed_tokens.weight"])), name
    assert load_check._finite(found["model"], exact=False).endswith(" nats")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"text_config": {"dtype": "bfloat16"}}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_a_part_has_a_dtype_wherever_the_base_says_it(
    told: dict[str, Any], expected: torch.dtype
) -> None:
    config: Any = Qwen3VLConfig(**told)
    config.low_rank = {"matrices": {"language_model.layers.0.mlp.up_proj": {}}}
    load_part.keep_two_layers(config)
    assert config.dtype == expected


# --- what is wrong ----------------------------------------------------------------------------


def test_a_value_that_is_not_finite_fails_in_the_last_layer(checkpoint: Path) -> None:
    name, found = "model.layers.4.input_layernorm.weight", dict[str, Any]()
    load_check._load_part(change(checkpoint, name, lambda t: t * torch.nan), 10**9, found)
    row = load_check._run("loss", lambda: load_check._finite(found["model"], exact=False))
    assert row["passed"] is False
    with pytest.raises(VerificationError, match="loss is nan"):
        require([Check.model_validate(row)], checkpoint)


def test_a_wrong_shape_or_kind_fails_in_any_layer(checkpoint: Path) -> None:
    orders = sorted(name for name in load_file(checkpoint / WEIGHTS) if name.endswith(".order"))
    norm = "model.layers.2.input_layernorm.weight"
    assert load_check._shapes(checkpoint)
    with pytest.raises(ValueError, match=re.escape(orders[-1])):
        load_check._shapes(change(checkpoint, orders[-1], torch.Tensor.float))
    with pytest.raises(ValueError, match=re.escape(norm)):
        load_check._shapes(change(checkpoint, norm, lambda t: t[:-1]))


def test_code_where_none_belongs_is_named_and_not_run(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit(1)\n")
    *_, code, clean = verify_checkpoint(seal(folder), published=False)
    assert (code.passed, code.detail) == (False, "own.py: only low-rank checkpoints have code")
    assert clean.passed is None


# --- what says nothing of the checkpoint ------------------------------------------------------


def test_a_load_without_time_is_not_judged(checkpoint: Path) -> None:
    checks = verify_checkpoint(checkpoint, published=False, limit_s=0.001)
    assert checks[-1].passed is None
    assert checks[-1].detail == "not finished in 0.001 s"
    require(checks, checkpoint)


def _refused() -> str:
    raise RuntimeError("DefaultCPUAllocator: not enough memory")


def _full() -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


def _wrong() -> str:
    raise OSError("no file named model.safetensors")  # as transformers says it


def test_only_a_fault_of_the_checkpoint_fails(checkpoint: Path) -> None:
    part = load_check._run("part", lambda: load_check._load_part(checkpoint, 1000, {}))
    assert part["passed"] is None
    assert "1,000 are free" in part["detail"]
    passed = [load_check._run("", check)["passed"] for check in (_refused, _full, _wrong)]
    assert passed == [None, None, False]


def test_a_part_of_other_shapes_than_the_whole_is_not_judged(checkpoint: Path) -> None:
    change(checkpoint, "model.layers.4.input_layernorm.weight", lambda t: t[:-1])
    row = load_check._run("part", lambda: load_check._load_part(checkpoint, 10**9, {}))
    assert row["passed"] is None
    assert "no part of this one" in row["detail"]
    assert "model.layers.1.input_layernorm.weight" in row["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("kill -9 $$", "ended early, exit status -9: no output"),
        ("echo no torch here >&2; exit 1", "ended early, exit status 1: no torch here"),
        ("exec sleep 60", "not finished in 2 s"),
    ],
)
def test_what_was_found_before_an_early_end_is_kept(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, why: str
) -> None:
    """The process has all cores, whatever its parent was given."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "script"
    script.write_text(ENDS + end)
    monkeypatch.setattr(verify, "INTERPRETER", ("sh",))
    monkeypatch.setattr(verify, "_LOAD_CHECK", script)
    *_, threads, last = verify_checkpoint(
        checkpoint, published=False, limit_s=2.0 if "sleep" in end else 600.0
    )
    assert threads.name == "threads"
    assert threads.detail == str(available_cores()) == str(len(os.sched_getaffinity(0)))
    assert last.passed is None
    assert last.detail == why
