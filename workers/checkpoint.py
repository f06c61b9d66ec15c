"""Reading a base checkpoint: its shape from headers alone, its tensors one at a time."""

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from schemas.errors import CheckpointError
from schemas.model import LOW_RANK, DecoderSpec, MatrixSpec, ModelSpec, TensorSpec
from schemas.shapes import Place, family, is_tied, places, positive
from workers.config_file import HUB_ERRORS, NAME, not_given, read_config, require_hub_id
from workers.store import sha256_of
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
    require_hub_id(model)
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_WANTED, ignore_patterns="consolidated*"
            )
        )
    except HUB_ERRORS as error:
        raise not_given(model, error) from error


def inspect(folder: Path) -> ModelSpec:
    """Everything that config.json and the safetensors headers say; no weight is read."""
    config, where = read_config(folder), str(folder / NAME)
    decoder = inspect_decoder(folder)
    if decoder.low_rank:
        raise CheckpointError(
            f"{where}: model_type {decoder.model_type!r} is a compressed checkpoint; compress the "
            "base that it was made from"
        )
    architecture, tensors = decoder.architecture, {t.name: t for t in decoder.tensors}
    matrices = tuple(
        _matrix(folder, architecture.base, place, tensors)
        for layer in range(decoder.layers)
        for place in places(architecture, layer, config)
    )
    stored = {tensors[f"{architecture.base}{m.name}.weight"].dtype for m in matrices}
    if len(stored) > 1:
        raise CheckpointError(
            f"{folder}: the decoder's matrices are stored in {' and '.join(sorted(stored))}; "
            "convert them to one dtype"
        )
    return ModelSpec(**dict(decoder), dtype=stored.pop(), matrices=matrices)


def inspect_decoder(folder: Path) -> DecoderSpec:
    """The same of a base or of a compressed checkpoint, but for its matrices."""
    config, where = read_config(folder), str(folder / NAME)
    model_type = str(config.get("model_type"))
    architecture = family(config | {"model_type": model_type.removeprefix(LOW_RANK)}, where)
    if architecture.planned:
        raise CheckpointError(
            f"{where}: model_type {config['model_type']!r} is planned, not yet compressed; "
            "`svdllm plan` says what it would take"
        )
    layers, hidden_size, vocab_size = (
        positive(config, key, where) for key in ("num_hidden_layers", "hidden_size", "vocab_size")
    )
    tied = is_tied(config)
    tensors = _tensors(folder)
    ends = (architecture.embedding, architecture.norm, *(() if tied else (architecture.head,)))
    if missing := [f"{end}weight" for end in ends if f"{end}weight" not in tensors]:
        raise CheckpointError(f"{folder}: no tensor {missing[0]} in the files")
    return DecoderSpec(
        model_type=model_type,
        layers=layers,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        tied=tied,
        tensors=tuple(tensors.values()),
    )


def base_files(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """SHA-256 of config.json and of every weight file, in parallel."""
    return sha256_of(folder, [NAME, *sorted({tensor.file for tensor in spec.tensors})])


class TensorReader:
    """Tensors of a checkpoint by name, read from disk when asked for."""

    def __init__(self, folder: Path, spec: DecoderSpec) -> None:
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


def _matrix(folder: Path, base: str, place: Place, tensors: dict[str, TensorSpec]) -> MatrixSpec:
    weight = tensors.get(f"{base}{place.name}.weight")
    if weight is None or len(weight.shape) != 2:
        raise CheckpointError(f"{folder}: no matrix {base}{place.name}.weight in the files")
    if not DTYPES[weight.dtype].is_floating_point:
        raise CheckpointError(
            f"{folder}: {weight.name} is {weight.dtype}; quantised weights are no base"
        )
    return place.matrix(*weight.shape, bias=f"{base}{place.name}.bias" in tensors)


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """The dtype in which the base stores its targeted matrices."""
    return DTYPES[spec.dtype]
