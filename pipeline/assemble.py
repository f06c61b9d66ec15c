"""The compressed checkpoint: its tensors planned from shapes, and the files around them."""

import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from runtime.configuration_lowrank import BIASES, FORMAT, identity, tensor_shapes
from schemas.config import RunConfig
from schemas.manifest import Compression, FileEntry
from schemas.model import ITEM_BYTES, MatrixSpec, ModelSpec, TensorSpec
from schemas.output import FactorSource, MatrixResult, OutputFile, OutputTensor
from workers.config_file import read_config
from workers.files import copy, file_sha256, write_text
from workers.own_code import RUNTIME, SHIPPED

_FILE_BYTES = 5 * 10**9
_COPIED: tuple[str, ...] = (
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)
_COPIED += ("added_tokens.json", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*")
_PACKAGES = ("svdllm", "ray", "torch", "transformers", "safetensors")


class Part(NamedTuple):
    """One weight file of the checkpoint: the base tensors it stands for, and their matrices."""

    name: str
    tensors: tuple[TensorSpec, ...]
    matrices: frozenset[str]


def plan_parts(spec: ModelSpec, parameters: dict[str, int]) -> list[Part]:
    """The base's tensors cut, in order, into weight files of about 5 GB at most.

    `parameters` is how many of each matrix are to stay.
    """
    dropped = f"{spec.architecture.head}weight" if spec.tied else None
    owners = _owners(spec)
    groups: list[list[TensorSpec]] = [[]]
    room = _FILE_BYTES
    for tensor in spec.tensors:
        if tensor.name == dropped:
            continue
        owner, _, leaf = tensor.name.rpartition(".")
        size = tensor.nbytes
        if leaf == "weight" and owner in owners:
            size = parameters[owners[owner].name] * ITEM_BYTES[tensor.dtype]
        if groups[-1] and size > room:
            groups.append([])
            room = _FILE_BYTES
        groups[-1].append(tensor)
        room -= size
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = ["model.safetensors"]
    return [
        Part(
            name,
            tuple(group),
            frozenset(
                owners[owner].name
                for tensor in group
                if (owner := tensor.name.rpartition(".")[0]) in owners
            ),
        )
        for name, group in zip(names, groups, strict=True)
    ]


def plan_file(
    spec: ModelSpec, part: Part, results: dict[str, MatrixResult], keys: dict[str, str]
) -> OutputFile:
    """The tensors of one weight file, in the base's order; `keys` names each matrix's factors."""
    owners = _owners(spec)
    planned = []
    for tensor in part.tensors:
        owner, _, leaf = tensor.name.rpartition(".")
        matrix = owners.get(owner)
        if matrix is None:
            planned.append(OutputTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape))
        elif leaf == "weight":
            planned += _matrix_tensors(owner, matrix, results[matrix.name], tensor.dtype, keys)
    return OutputFile(name=part.name, tensors=tuple(planned))


def write_around(
    folder: Path,
    base: Path,
    spec: ModelSpec,
    results: dict[str, MatrixResult],
    files: list[OutputFile],
) -> None:
    """Everything beside the weights: config, index, code, tokenizer files byte for byte."""
    for pattern in _COPIED:
        for source in base.glob(pattern):
            if source.is_file():
                copy(source, folder / source.name)
    for name in SHIPPED:
        copy(RUNTIME / name, folder / name)
    config = read_config(base) | identity(spec.model_type)
    config["low_rank"] = {
        "format": FORMAT,
        "matrices": {
            name: {"encoding": result.encoding, "rank": result.rank}
            for name, result in results.items()
        },
    }
    _write_json(folder / "config.json", config)
    if len(files) > 1:
        weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
        size = sum(tensor.nbytes for file in files for tensor in file.tensors)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def describe(
    config: RunConfig,
    spec: ModelSpec,
    ratio: float,
    results: dict[str, MatrixResult],
    files: list[OutputFile],
    facts: dict[str, Any],
) -> Compression:
    """compression.json, from what is planned to be on disk."""
    after = sum(result.parameters for result in results.values())
    before = sum(math.prod(tensor.shape) for tensor in spec.tensors)
    written = [tensor for file in files for tensor in file.tensors]
    nats = [result.nats for result in results.values()]
    return Compression(
        model=config.model,
        model_type=spec.model_type,
        ratio=ratio,
        keep=1 - ratio,
        removed=1 - after / spec.targeted,
        method={
            "preset": config.method,
            "truncation": config.truncation,
            "allocation": config.allocation.method,
            "factors": config.factors,
        },
        targeted_before=spec.targeted,
        targeted_after=after,
        parameters_before=before,
        parameters_after=sum(
            math.prod(tensor.shape) for tensor in written if not tensor.name.endswith(".order")
        ),
        bytes_before=sum(tensor.nbytes for tensor in spec.tensors),
        bytes_after=sum(tensor.nbytes for file in files for tensor in file.tensors),
        nats=None if None in nats else sum(value or 0.0 for value in nats),
        calibration=config.calibration,
        numerics=config.numerics,
        seed=config.seed,
        matrices=tuple(results.values()),
        **facts,
    )


def checksums(folder: Path, known: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """Every file of a checkpoint but the manifest: those of `folder`, and weight files, `known`
    from their records, which need not be there.
    """
    found = {
        path.name: FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in folder.iterdir()
        if path.is_file() and path.name not in (*known, "manifest.json")
    }
    return dict(sorted((found | known).items()))


def versions() -> dict[str, str]:
    """Versions of this project and of what it stands on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # svdllm itself, when run from a bare working directory
            found[package] = "not installed"
    return found


def _owners(spec: ModelSpec) -> dict[str, MatrixSpec]:
    """The targeted matrices by the name of their module in the checkpoint."""
    return {f"{spec.architecture.base}{matrix.name}": matrix for matrix in spec.matrices}


def _matrix_tensors(
    owner: str, matrix: MatrixSpec, result: MatrixResult, dtype: str, keys: dict[str, str]
) -> list[OutputTensor]:
    shapes = tensor_shapes(
        result.encoding, result.rank, matrix.out_features, matrix.in_features, matrix.bias
    )
    planned = []
    for tail, shape in shapes.items():
        name = f"{owner}.{tail}"
        kind = "I64" if tail == "order" else dtype
        if tail in BIASES:
            source: dict[str, Any] = {"base": f"{owner}.bias"}
        elif result.encoding == "dense":
            source = {"base": f"{owner}.weight"}
        else:
            source = {"factors": FactorSource(key=keys[matrix.name], tensor=tail)}
        planned.append(OutputTensor(name=name, dtype=kind, shape=shape, **source))
    return planned


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
