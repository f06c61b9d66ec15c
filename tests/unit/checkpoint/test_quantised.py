"""Quantised tensors give the values that transformers gives them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from schemas.errors import CheckpointError
from tests.models import tiny_model
from tests.quantised import to_fp8
from workers.checkpoint.dequantise import values
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(256, 384), (128, 128), (64, 128)])
def test_fp8_is_what_transformers_reads(shape: tuple[int, int]) -> None:
    quantised = random(1, *shape).to(torch.float8_e4m3fn)
    scales = random(2, max(shape[0] // 128, 1), shape[1] // 128).abs()
    plain: Any = SimpleNamespace()
    expected = Fp8Dequantize._dequantize_one(plain, quantised, scales, torch.bfloat16)
    block = shape[0] // len(scales), 128
    assert torch.equal(values((quantised, scales), block), expected)


def test_the_last_block_may_be_cut_short() -> None:
    """576 rows of DeepSeek's latent attention are four and a half blocks."""
    quantised, scales = torch.ones(576, 130).to(torch.float8_e4m3fn), random(2, 5, 2)
    found = values((quantised, scales), (128, 128))
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(found, wide[:576, :130].to(torch.bfloat16))


def test_mxfp4_is_what_transformers_reads() -> None:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (3, 40, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 134, (3, 40, 2), generator=generator, dtype=torch.uint8)
    found = values((blocks, scales))
    assert found.shape == (3, 64, 40)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return to_fp8(tiny_model(tmp_path, "qwen3"))


def test_a_quantised_base_is_refused_with_the_option(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"quantised \(fp8\); .*--dequantize"):
        inspect(folder)


def test_without_its_config_it_is_refused_by_tensor(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"_proj\.weight(_scale_inv)? is F"):
        inspect(folder)


def test_it_is_described_and_read_as_dense(folder: Path) -> None:
    spec = inspect(folder, dequantize=True)
    assert spec.dtype == "BF16"
    assert not any("scale" in tensor.name for tensor in spec.tensors)
    stored = load_file(folder / "model.safetensors")
    name = f"{spec.matrices[0].stored}.weight"
    expected = values((stored[name], stored[f"{name}_scale_inv"]), (16, 16))
    assert torch.equal(TensorReader(folder, spec).read(name), expected)


def test_scales_of_another_block_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [32, 32]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weight(_scale_inv)? is F.*quantised base"):
        inspect(folder, dequantize=True)


def test_values_without_their_scales_are_refused(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    lost = next(name for name in stored if name.endswith("scale_inv"))
    stored.pop(lost)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{lost.removesuffix('_scale_inv')} is F8_E4M3"):
        inspect(folder, dequantize=True)
