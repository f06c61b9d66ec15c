"""The tensors in the files of a compressed checkpoint, and a model of its first and last layer.

load_check.py runs this file without the project, so it imports torch and safetensors only.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_FACTORS = (".down.weight", ".dense.weight")  # a matrix has one, unless it keeps all its columns


def keep_two_layers(config: Any) -> list[int]:
    """Change a configuration to that of the first and the last layer; return their numbers.

    It names a dtype then, whether or not it did. Raises LookupError if no layer has a matrix that
    was cut.
    """
    text = config.get_text_config(decoder=True)
    config.dtype = config.dtype or text.dtype or torch.float32
    number = text.num_hidden_layers
    layers = sorted({0, number - 1})
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == number:
            setattr(text, name, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    matrices = config.low_rank["matrices"]
    prefix = _before_number(matrices)
    low_rank = config.low_rank.items()
    kept = {key: _of_layers(v, prefix, layers) for key, v in low_rank if isinstance(v, dict)}
    config.low_rank = {**config.low_rank, **kept}
    return layers


def shapes_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return a tensor without values for every one in the files, of float32 or int64."""
    stored = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                entry = file.get_slice(name)
                dtype = torch.float32 if "F" in entry.get_dtype() else torch.int64
                stored[name] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
    return stored


def tensors_of(folder: Path, layers: list[int]) -> dict[str, torch.Tensor]:
    """Read the tensors of some layers, numbered from 0, and those that belong to no layer."""
    places: dict[str, Path] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    prefix = _before_number(name for name in places if name.endswith(_FACTORS))
    wanted = _of_layers({name: name for name in places}, prefix, layers)
    found: dict[str, torch.Tensor] = {}
    for new, old in wanted.items():
        with safe_open(places[old], framework="pt") as file:
            found[new] = file.get_tensor(old)
    return found


def _before_number(names: Iterable[str]) -> str:
    """Return the name of the list of layers, from those of matrices, one of which may be the head.

    Raises LookupError if none is in a layer.
    """
    for name in names:
        before, *after = re.split(r"\.\d+\.", name, maxsplit=1)
        if after:
            return f"{before}."
    raise LookupError("no layer has a matrix that was cut")


def _of_layers(entries: dict[str, Any], prefix: str, layers: list[int]) -> dict[str, Any]:
    """Renumber the entries of some layers from 0, and keep those that belong to no layer."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        if not (name.startswith(prefix) and number.isdigit()):
            found[name] = entry
        elif (layer := int(number)) in layers:
            found[f"{prefix}{layers.index(layer)}.{rest}"] = entry
    return found
