"""Reading a base checkpoint: its shape from headers alone, its tensors one at a time."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemas.errors import CheckpointError
from schemas.model import ARCHITECTURES, Architecture, MatrixSpec, ModelSpec, TensorSpec
from workers.store import file_sha256
from workers.tensorfile import DTYPES

_WANTED = [
    "*.json",
    "*.safetensors",
    "*.py",
    "tokenizer*",
    "*.model",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
    "README.md",
]


def resolve(model: str, revision: str | None) -> Path:
    """The local folder of a checkpoint: `model` itself, or the hub's snapshot of it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"model {model!r}: no such folder, and not a hub id like org/name")
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_WANTED, ignore_patterns="consolidated*"
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"model {model!r}: no such folder, and the hub did not give it ({error}); "
            "name a local folder, or check the id, the network and HF_TOKEN"
        ) from error


def inspect(folder: Path) -> ModelSpec:
    """Everything that config.json and the safetensors headers say; no weight is read."""
    config = read_config(folder)
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {model_type!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder / 'config.json'}: the checkpoint is quantised (quantization_config); "
            "compress the original, then quantise the result"
        )
    layers, hidden_size, vocab_size = (
        _positive(folder, config, key) for key in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    architecture, tied = ARCHITECTURES[model_type], bool(config.get("tie_word_embeddings", False))
    tensors = _tensors(folder)
    ends = (architecture.embedding, architecture.norm, *(() if tied else (architecture.head,)))
    if missing := [f"{end}weight" for end in ends if f"{end}weight" not in tensors]:
        raise CheckpointError(f"{folder}: no tensor {missing[0]} in the files")
    matrices = _matrices(folder, architecture, layers, tensors)
    stored = {tensors[f"{architecture.base}{m.name}.weight"].dtype for m in matrices}
    if len(stored) > 1:
        raise CheckpointError(
            f"{folder}: the decoder's matrices are stored in {' and '.join(sorted(stored))}; "
            "convert them to one dtype"
        )
    return ModelSpec(
        model_type=model_type,
        layers=layers,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        dtype=stored.pop(),
        tied=tied,
        matrices=matrices,
        tensors=tuple(tensors.values()),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found; is this a Hugging Face checkpoint?") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return config


def _positive(folder: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"{folder / 'config.json'}: {key} is {value!r}, not a whole number above 0"
        )
    return value


def base_files(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """SHA-256 of config.json and of every weight file, in parallel."""
    names = ["config.json", *sorted({tensor.file for tensor in spec.tensors})]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(
            zip(names, pool.map(lambda name: file_sha256(folder / name), names), strict=True)
        )


class TensorReader:
    """Tensors of a checkpoint by name, read from disk when asked for."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder = folder
        self._files = {tensor.name: tensor.file for tensor in spec.tensors}

    def read(self, name: str) -> Tensor:
        """One tensor, on the host, in its stored dtype."""
        with safe_open(self._folder / self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name starts with `prefix`, by the rest of its name."""
        names = [name for name in self._files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name) for name in names}


def _tensors(folder: Path) -> dict[str, TensorSpec]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        weight_map = _weight_map(index)
        files = sorted(set(weight_map.values()))
    elif single.is_file():
        weight_map, files = {}, [single.name]
    else:
        found = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weights"
        raise CheckpointError(
            f"{folder}: no model.safetensors and no index of shards (found {found}); "
            "only safetensors is read: load the model with transformers and save_pretrained it"
        )
    # Exports of old carry rotary frequencies, which models compute; transformers drops them too.
    tensors = {
        spec.name: spec
        for file in files
        for spec in _header(folder / file)
        if not spec.name.endswith("rotary_emb.inv_freq")
    }
    named = {name for name in weight_map if not name.endswith("rotary_emb.inv_freq")}
    if missing := sorted(named - tensors.keys()):
        raise CheckpointError(f"{index}: tensor {missing[0]} is in none of the files it names")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r})") from error
    return found


def _header(path: Path) -> list[TensorSpec]:
    try:
        with safe_open(path, framework="pt") as file:
            specs = []
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = file.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise CheckpointError(
                        f"{path}: {name} is {part.get_dtype()}; "
                        f"only {', '.join(DTYPES)} are read: convert it to one of these"
                    )
                specs.append(
                    TensorSpec(
                        name=name,
                        file=path.name,
                        dtype=part.get_dtype(),
                        shape=tuple(part.get_shape()),
                    )
                )
            return specs
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found, though the index names it") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from error


def _matrices(
    folder: Path, architecture: Architecture, layers: int, tensors: dict[str, TensorSpec]
) -> tuple[MatrixSpec, ...]:
    matrices = []
    for layer in range(layers):
        prefix = architecture.layer.format(layer)
        for target in architecture.targets:
            weight = tensors.get(f"{prefix}{target.path}.weight")
            if weight is None or len(weight.shape) != 2:
                raise CheckpointError(
                    f"{folder}: no matrix {prefix}{target.path}.weight in the files"
                )
            if not DTYPES[weight.dtype].is_floating_point:
                raise CheckpointError(
                    f"{folder}: {weight.name} is {weight.dtype}; quantised weights are no base"
                )
            matrices.append(
                MatrixSpec(
                    name=f"{prefix}{target.path}".removeprefix(architecture.base),
                    layer=layer,
                    path=target.path,
                    reads=target.reads,
                    out_features=weight.shape[0],
                    in_features=weight.shape[1],
                    bias=f"{prefix}{target.path}.bias" in tensors,
                )
            )
    return tuple(matrices)


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype in which the base stores its targeted matrices."""
    return DTYPES[spec.dtype]
