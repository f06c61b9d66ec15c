"""The compressed checkpoint: its tensors planned from shapes, and the files around them."""

import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.configuration_lowrank import FORMAT, identity
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.result.manifest import Compression, FileEntry
from schemas.result.output import MatrixResult, OutputFile
from workers.checkpoint.config_file import read_config
from workers.checkpoint.own_code import RUNTIME, SHIPPED
from workers.storage.files import copy, file_sha256, write_text

_COPIED: tuple[str, ...] = (
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)
_COPIED += ("added_tokens.json", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*")
_PACKAGES = ("svdllm", "ray", "torch", "transformers", "safetensors")


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


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
