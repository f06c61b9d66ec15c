"""What the files of a checkpoint hold, from their headers alone."""

from pathlib import Path
from typing import Any

from schemas.errors import CheckpointError
from schemas.location import Location, Url
from schemas.model.dtypes import QUANTISED
from schemas.model.spec import ModelSpec, TensorSpec
from workers.checkpoint.folder import read_small, require_contained, require_file_name
from workers.checkpoint.headers import QUANTISED_ADVICE, read_header
from workers.checkpoint.names import CONFIG, INDEX, WEIGHTS
from workers.checkpoint.quantised import dequantised
from workers.checkpoint.strict_json import parse
from workers.storage.files import sha256_of
from workers.storage.places import at_once, exists, identity_of, names_in

# Weight files that are refused: all but the last can run code when they are opened.
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".gguf")
# Tensors that GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors store beside or for a weight.
_QUANTISED = (
    *(".qweight", ".qzeros", ".scales", ".g_idx"),
    *(".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB"),
    *(".weight_scale", ".weight_scale_inv", ".input_scale", ".weight_zero_point"),
    *(".weight_packed", ".weight_shape", ".bitsandbytes__nf4", ".bitsandbytes__fp4"),
)


def base_files(folder: Path, spec: ModelSpec) -> dict[str, str]:
    """Identify config.json and every weight file by SHA-256, in parallel.

    A weight file in an object store is identified by what the store says ("etag:..."): hashing its
    content would read it once more.
    """
    files = sorted({tensor.file for tensor in spec.tensors})
    if not isinstance(url := spec.weights, Url):
        return sha256_of(folder, [CONFIG, *files])
    versions = at_once(lambda file: identity_of(url / file), files)
    return sha256_of(folder, [CONFIG]) | dict(zip(files, versions, strict=True))


def dense_tensors_of(
    folder: Path, weights: Location, block: tuple[int, int] | None
) -> dict[str, TensorSpec]:
    """Return every tensor by name, in the order of the files, which are in `weights`.

    With a `block`, quantised tensors are the dense ones that they stand for. Raises CheckpointError
    if other weights are quantised, and as `tensors_of` does.
    """
    found = tensors_of(folder, weights)
    found = dequantised(found, block) if block else found
    for name, tensor in found.items():
        if name.endswith(_QUANTISED) or tensor.dtype in QUANTISED:
            raise CheckpointError(
                f"{weights / tensor.file}: {name} is {tensor.dtype}; {QUANTISED_ADVICE}"
            )
    return found


def tensors_of(folder: Path, weights: Location) -> dict[str, TensorSpec]:
    """Return every tensor by name, as the files hold it.

    Raises CheckpointError if files and index disagree.
    """
    require_contained(folder)
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
    headers = at_once(lambda file: read_header(weights / file), files)
    tensors: dict[str, TensorSpec] = {}
    for spec in (spec for header in headers for spec in header if not _is_computed(spec.name)):
        if other := tensors.get(spec.name):
            raise CheckpointError(
                f"{weights}: tensor {spec.name} is in {other.file} and in {spec.file}; fetch the "
                "whole checkpoint again"
            )
        tensors[spec.name] = spec
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


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files whose weights are loaded: those that the index names, or
    model.safetensors, if it is there. A folder may hold others beside them.
    """
    named = sorted(set(weight_map(folder / INDEX).values()))
    return named or [name for name in (WEIGHTS,) if (folder / name).exists()]


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
