"""What a checkpoint holds, from config.json and headers alone; does not need torch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from schemas.errors import CheckpointError
from schemas.location import Location, Url
from schemas.model.shapes import LOW_RANK, family, model_spec, require_base
from schemas.model.spec import DecoderSpec, ModelSpec, TensorSpec
from workers.checkpoint.config_file import read_config
from workers.checkpoint.folder import read_small, require_contained, require_file_name
from workers.checkpoint.headers import read_header
from workers.checkpoint.names import CONFIG, INDEX, WEIGHTS
from workers.checkpoint.strict_json import parse
from workers.storage.files import sha256_of
from workers.storage.places import IN_FLIGHT, exists, identity_of, names_in

# Weight files that are refused: all but the last can run code when they are opened.
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".gguf")
# Tensors that GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors store beside or for a weight.
_QUANTISED = (
    *(".qweight", ".qzeros", ".scales", ".g_idx"),
    *(".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB"),
    *(".weight_scale", ".weight_scale_inv", ".input_scale", ".weight_zero_point"),
    *(".weight_packed", ".weight_shape", ".bitsandbytes__nf4", ".bitsandbytes__fp4"),
)
_QUANTISED_ADVICE = "a quantised base is not read: compress the original, then quantise the result"


def inspect(folder: Path, weights: Url | None = None) -> ModelSpec:
    """Return everything that config.json and the safetensors headers say, without reading weights.

    `weights` is the place of the weight files, if they are not in `folder`. Raises CheckpointError
    if a tensor of the model is missing, has another shape than config.json implies or a dtype that
    no base has, or if the files hold a tensor that is not part of the model.
    """
    decoder, told = _decoder(folder, weights)
    require_base(read_config(folder), str(folder / CONFIG))
    found = {tensor.name: tensor for tensor in decoder.tensors}
    owners = [f"{decoder.architecture.base}{matrix.name}" for matrix in told.matrices]
    names = [f"{owner}.{leaf}" for owner in owners for leaf in ("weight", "bias")]
    stored = {found[name].dtype: name for name in names if name in found}
    if len(stored) > 1:
        examples = ", ".join(f"{name} in {dtype}" for dtype, name in sorted(stored.items()))
        raise CheckpointError(
            f"{folder}: the decoder's matrices are stored in {' and '.join(sorted(stored))} "
            f"({examples}); convert them to one dtype"
        )
    return ModelSpec(**dict(decoder), dtype=next(iter(stored)), matrices=told.matrices)


def inspect_decoder(folder: Path, weights: Url | None = None) -> DecoderSpec:
    """Do the same for a base or a compressed checkpoint, without describing its matrices."""
    return _decoder(folder, weights)[0]


def base_files(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Identify config.json and every weight file by SHA-256, in parallel.

    A weight file in an object store is identified by what the store says ("etag:..."): hashing its
    content would read it once more.
    """
    files = sorted({tensor.file for tensor in spec.tensors})
    if not isinstance(url := spec.weights, Url):
        return sha256_of(folder, [CONFIG, *files])
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        versions = list(pool.map(lambda file: identity_of(url / file), files))
    return sha256_of(folder, [CONFIG]) | dict(zip(files, versions, strict=True))


def _decoder(folder: Path, weights: Url | None) -> tuple[DecoderSpec, ModelSpec]:
    """Return what the files hold, and what config.json says of the base, after comparing them."""
    require_contained(folder)
    config, where = read_config(folder), str(folder / CONFIG)
    if family(config, where).planned:
        raise CheckpointError(
            f"{where}: model_type {config['model_type']!r} is planned, not yet compressed; "
            "`svdllm plan` says what it would take"
        )
    told = model_spec(config, where)
    tensors = _tensors(folder, weights or folder)
    spec = DecoderSpec(
        model_type=told.model_type,
        layers=told.layers,
        hidden_size=told.hidden_size,
        vocab_size=told.vocab_size,
        tied=told.tied,
        tensors=tuple(tensors.values()),
        weights=weights,
        low_rank=LOW_RANK in config,
    )
    _compare(folder, spec, told, tensors)
    return spec, told


def _compare(
    folder: Path, spec: DecoderSpec, told: ModelSpec, tensors: dict[str, TensorSpec]
) -> None:
    """Raises CheckpointError at the first tensor that is not what config.json implies.

    The matrices of a compressed checkpoint consist of other tensors, which its layers check.
    """
    architecture = spec.architecture
    expected = {tensor.name: tensor.shape for tensor in told.tensors}
    parts: tuple[str, ...] = ()
    if spec.low_rank:
        parts = tuple(f"{architecture.base}{matrix.name}." for matrix in told.matrices)
        expected = {name: s for name, s in expected.items() if not name.startswith(parts)}
    described = f"config.json describes ({spec.model_type}, {spec.layers} layers)"
    for name, shape in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{folder}: no tensor {name} in the files, though it belongs to the model that "
                f"{described}; fetch the whole checkpoint again"
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{folder / tensor.file}: {name} has shape {list(tensor.shape)}, config.json "
                f"implies {list(shape)}; fetch config.json and weights of one model"
            )
        if not tensor.dtype.startswith(("F", "BF")):
            raise CheckpointError(
                f"{folder / tensor.file}: {name} is {tensor.dtype}; {_QUANTISED_ADVICE}"
            )
    idle = f"{architecture.head}weight" if spec.tied else ""
    for name in tensors.keys() - expected.keys() - {idle}:
        if not (parts and name.startswith(parts)):
            raise CheckpointError(
                f"{folder / tensors[name].file}: tensor {name} is no part of the model that "
                f"{described}; remove it, or correct config.json"
            )


def _tensors(folder: Path, weights: Location) -> dict[str, TensorSpec]:
    """Return every tensor by name, in the order of the files."""
    listed = weight_map(folder / INDEX)
    if listed:
        files = sorted(set(listed.values()))
        if WEIGHTS not in files and exists(weights / WEIGHTS):
            raise CheckpointError(
                f"{weights}: {WEIGHTS} is there, and an index of other files; remove one of them"
            )
    elif exists(weights / WEIGHTS):
        files = [WEIGHTS]
    else:
        raise _no_weights(weights)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        headers = list(pool.map(lambda file: read_header(weights / file), files))
    tensors: dict[str, TensorSpec] = {}
    for spec in (spec for header in headers for spec in header if not _is_computed(spec.name)):
        if other := tensors.get(spec.name):
            raise CheckpointError(
                f"{weights}: tensor {spec.name} is in {other.file} and in {spec.file}; fetch the "
                "whole checkpoint again"
            )
        tensors[spec.name] = spec
    if quantised := [name for name in tensors if name.endswith(_QUANTISED)]:
        file = tensors[quantised[0]].file
        raise CheckpointError(f"{weights / file}: holds {quantised[0]}; {_QUANTISED_ADVICE}")
    for name, file in listed.items():
        if not _is_computed(name) and (name not in tensors or tensors[name].file != file):
            raise CheckpointError(
                f"{folder / INDEX}: tensor {name} is not in {file}, which the index names for "
                "it; fetch the whole checkpoint again"
            )
    return tensors


def _is_computed(name: str) -> bool:
    """Whether it is a rotary frequency of an old export; transformers drops these, too."""
    return name.endswith("rotary_emb.inv_freq")


def _no_weights(weights: Location) -> CheckpointError:
    foreign = [name for name in names_in(weights) if name.endswith(_FOREIGN)]
    found = ", ".join(foreign) or "no weights"
    return CheckpointError(
        f"{weights}: no {WEIGHTS} and no index of shards (found {found}); only safetensors is "
        "read, as pickled files can run code: convert a checkpoint that you trust, with "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)"
    )


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor; empty if there is no index."""
    try:
        content: Any = parse(read_small(index))
        found: Any = content["weight_map"]
        if not (isinstance(found, dict) and found):
            raise ValueError("weight_map is no object with tensors")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index}: not an index of safetensors files ({error!r}); fetch it again"
        ) from error
    return {name: require_file_name(file, index) for name, file in found.items()}
