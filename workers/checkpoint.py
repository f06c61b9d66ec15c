"""What a checkpoint holds, from config.json and headers alone; torch is not needed for it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas.errors import CheckpointError
from schemas.location import Url
from schemas.model import LOW_RANK, DecoderSpec, MatrixSpec, ModelSpec, TensorSpec
from schemas.shapes import Place, family, is_tied, places, positive
from workers.config_file import NAME, read_config
from workers.files import sha256_of
from workers.headers import read_header
from workers.objects import IN_FLIGHT, exists, identity_of, names_in


def inspect(folder: Path, weights: Url | None = None) -> ModelSpec:
    """Everything that config.json and the safetensors headers say; no weight is read.

    `weights` is where the weight files are, if they are not in `folder`.
    """
    config, where = read_config(folder), str(folder / NAME)
    decoder = inspect_decoder(folder, weights)
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


def inspect_decoder(folder: Path, weights: Url | None = None) -> DecoderSpec:
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
    tensors = _tensors(folder, weights or folder)
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
        weights=weights,
    )


def base_files(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Identity of config.json and of every weight file, in parallel: its SHA-256.

    For a weight file in an object store it is what the store says ("etag:..."): a hash of its
    content would read it once more.
    """
    files = sorted({tensor.file for tensor in spec.tensors})
    if not isinstance(url := spec.weights, Url):
        return sha256_of(folder, [NAME, *files])
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        versions = list(pool.map(lambda file: identity_of(url / file), files))
    return sha256_of(folder, [NAME]) | dict(zip(files, versions, strict=True))


def _tensors(folder: Path, weights: Path | Url) -> dict[str, TensorSpec]:
    index = folder / "model.safetensors.index.json"
    single = weights / "model.safetensors"
    if index.is_file():
        weight_map = _weight_map(index)
        files = sorted(set(weight_map.values()))
    elif exists(single):
        weight_map, files = {}, [single.name]
    else:
        pickled = [name for name in names_in(weights) if name.endswith(".bin")]
        found = ", ".join(pickled) or "no weights"
        raise CheckpointError(
            f"{weights}: no model.safetensors and no index of shards (found {found}); "
            "only safetensors is read: load the model with transformers and save_pretrained it"
        )
    # Exports of old carry rotary frequencies, which models compute; transformers drops them too.
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        headers = list(pool.map(lambda file: read_header(weights / file), files))
    tensors = {
        spec.name: spec
        for header in headers
        for spec in header
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


def _matrix(folder: Path, base: str, place: Place, tensors: dict[str, TensorSpec]) -> MatrixSpec:
    weight = tensors.get(f"{base}{place.name}.weight")
    if weight is None or len(weight.shape) != 2:
        raise CheckpointError(f"{folder}: no matrix {base}{place.name}.weight in the files")
    if not weight.dtype.startswith(("F", "BF")):
        raise CheckpointError(
            f"{folder}: {weight.name} is {weight.dtype}; quantised weights are no base"
        )
    return place.matrix(*weight.shape, bias=f"{base}{place.name}.bias" in tensors)
