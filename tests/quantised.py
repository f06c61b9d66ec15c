"""Checkpoints as FP8 and MXFP4 ones are stored."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_BLOCK = 16


def to_fp8(folder: Path) -> Path:
    """Quantise the matrices of the layers of a checkpoint, in blocks of 16 by 16."""

    def quantise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            if ".layers." not in name or tensor.ndim != 2 or min(tensor.shape) < _BLOCK:
                found[name] = tensor.to(torch.bfloat16)
                continue
            rows, columns = (size // _BLOCK for size in tensor.shape)
            blocks = tensor.view(rows, _BLOCK, columns, _BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            quantised = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            found[name] = quantised.view(tensor.shape)
            found[f"{name}_scale_inv"] = scales
        return found

    return _rewrite(folder, quantise, {"quant_method": "fp8", "weight_block_size": [_BLOCK] * 2})


def to_mxfp4(folder: Path) -> Path:
    """Give the experts of a gpt-oss random values of four bits."""
    generator = torch.Generator().manual_seed(4)

    def quantise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            if not name.endswith(("gate_up_proj", "down_proj")):
                found[name] = tensor.to(torch.bfloat16)
                continue
            experts, columns, rows = tensor.shape
            shape = (experts, rows, columns // 32, 16)
            found[f"{name}_blocks"] = torch.randint(
                256, shape, generator=generator, dtype=torch.uint8
            )
            found[f"{name}_scales"] = torch.full(shape[:-1], 124, dtype=torch.uint8)
        return found

    return _rewrite(folder, quantise, {"quant_method": "mxfp4"})


def _rewrite(folder: Path, change: Any, quantization: dict[str, Any]) -> Path:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": quantization, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
