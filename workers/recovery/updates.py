"""Updates of low rank, trained beside frozen factors as SVD-LLM does (arXiv 2403.07378, section
3.2): LoRA (Hu et al., arXiv 2106.09685).
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

FACTORS = ("down", "up", "dense")  # the last of matrices that lack some neurons
_ALPHA = 16


def add_updates(layer: nn.Module, factors: Sequence[str], rank: int, seed: int) -> list[str]:
    """Put an update beside each of these linear layers of a layer: W + (16 / rank) B A; return the
    names of all A (rank, in) and B (out, rank).

    Every worker gets the same A; B is zero. Everything else of the layer is frozen.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to load

    exactly = "|".join(map(re.escape, factors))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=_ALPHA, target_modules=exactly), layer
        )
    return [name for name, parameter in layer.named_parameters() if parameter.requires_grad]


def factor_of(name: str) -> str:
    """Return which factor a trained parameter is, or updates."""
    return name.partition(".lora_")[0].removesuffix(".weight").rpartition(".")[2]


def after_training(
    stored: Mapping[str, Tensor], place: str, trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that store the matrix at `place`, in their dtypes on the CPU: its trained
    factors, whole, in the place of the cut ones, or these with their updates added in float32.
    """
    found = dict(stored)
    for factor in FACTORS:
        weight, name = f"{factor}.weight", f"{place}.{factor}"
        if (parameter := trained.get(f"{place}.{weight}")) is not None:
            found[weight] = parameter.to(stored[weight].dtype)
        elif f"{name}.lora_A.default.weight" in trained:
            A, B = (trained[f"{name}.lora_{part}.default.weight"] for part in "AB")
            update = _ALPHA / len(A) * (B @ A)
            found[weight] = (stored[weight].float() + update).to(stored[weight].dtype)
    return found


def whole(parameter: Tensor) -> Tensor:
    """Return a sharded parameter on the CPU; all workers call it."""
    found = parameter.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu()
