"""Everything about a checkpoint that is known before a weight is read.

The model is built on the meta device from config.json, its forward tells what its layers consist
of, and the headers of the weight files are compared with it.
"""

import functools
import json
from pathlib import Path

import torch

from schemas.errors import CheckpointError
from schemas.location import Url
from schemas.model.spec import DecoderSpec, MatrixSpec, ModelSpec, TensorSpec
from schemas.run.targets import ROUTERS, matches
from workers.checkpoint.config_file import config_of, read_config
from workers.checkpoint.contents import dense_tensors_of
from workers.checkpoint.family import (
    Config,
    block_of,
    dtype_of,
    require_base,
    unquantised,
)
from workers.checkpoint.names import CONFIG, WEIGHTS
from workers.checkpoint.tensors import TensorReader
from workers.model.description import Description


def inspect(folder: Path, weights: Url | None = None, dequantize: bool = False) -> ModelSpec:
    """Return everything that config.json and the safetensors headers say, without reading weights.

    `weights` is the place of the weight files, if they are not in `folder`; quantised ones are
    described as the dense ones that they stand for if they are to be dequantised. Raises
    CheckpointError if transformers cannot compute the model, if a tensor of it is missing, has
    another shape than config.json implies or a dtype that no base has, or if the files hold a
    tensor that is not part of the model.
    """
    where = str(folder / CONFIG)
    config = read_config(folder)
    require_base(config, where)
    model = Description(unquantised(config, where, dequantize), where)
    decoder = _decoder(folder, weights, model, block_of(config) if dequantize else None)
    matrices = model.matrices()
    return ModelSpec(
        **dict(decoder),
        dtype=_dtype(folder, decoder, matrices),
        matrices=matrices,
        head=model.head(),
    )


def inspect_decoder(folder: Path, weights: Url | None = None) -> DecoderSpec:
    """Do the same for a base or a compressed checkpoint, without describing its matrices.

    Weights that are quantised are described as dequantised.
    """
    where = str(folder / CONFIG)
    config = read_config(folder)
    model = Description(unquantised(config, where, dequantize=True), where)
    return _decoder(folder, weights, model, block_of(config))


def read_spec(model: str, revision: str | None, dequantize: bool = False) -> ModelSpec:
    """Derive the same from the config.json of a folder, a file, a hub id or a URL alone."""
    config, where = config_of(model, revision)
    config = unquantised(config, where, dequantize)
    require_base(config, where)
    return planned(config, where, dtype_of(config, where))


def planned(config: Config, where: str, dtype: str) -> ModelSpec:
    """Derive it from the content of a config.json, for weights stored as `dtype` (safetensors')."""
    return _planned(json.dumps(config, sort_keys=True), where, dtype)


@functools.lru_cache(maxsize=8)  # a large model takes a second, and is asked for more than once
def _planned(content: str, where: str, dtype: str) -> ModelSpec:
    model = Description(json.loads(content), where)
    tensors = model.placed(
        TensorSpec(name=name, file=WEIGHTS, dtype=dtype, shape=tuple(tensor.shape))
        for name, tensor in model.state.items()
        if name not in model.tied
    )
    decoder = model.spec(tensors, None)
    return ModelSpec(**dict(decoder), dtype=dtype, matrices=model.matrices(), head=model.head())


def _decoder(
    folder: Path, weights: Url | None, model: Description, block: tuple[int, int] | None
) -> DecoderSpec:
    tensors = model.placed(dense_tensors_of(folder, weights or folder, block).values())
    model.compare(folder, tensors)
    spec = model.spec(tensors, weights)
    _require_tied(folder, spec)
    return spec


def _require_tied(folder: Path, spec: DecoderSpec) -> None:
    """Raises CheckpointError if config.json ties embedding and head, and the files do not."""
    reader = TensorReader(folder, spec)
    [table] = [tensor.name for tensor in spec.tensors if tensor.role == "embedding"]
    for head in [tensor.name for tensor in spec.tensors if tensor.role == "tied"]:
        if not torch.equal(reader.read(table), reader.read(head)):
            raise CheckpointError(
                f"{folder}: config.json ties {head} to {table}, and the files hold other values; "
                "set tie_word_embeddings to false, or remove the tensor"
            )


def _dtype(folder: Path, decoder: DecoderSpec, matrices: tuple[MatrixSpec, ...]) -> str:
    """Return the one dtype that matrices are stored in, except those of routers, which are not cut.

    Raises CheckpointError if it is several.
    """
    found = {tensor.name: tensor for tensor in decoder.tensors}
    cut = [matrix for matrix in matrices if not any(matches(matrix.name, r) for r in ROUTERS)]
    names = [f"{matrix.stored}.{leaf}" for matrix in cut for leaf in ("weight", "bias")]
    stored = {found[name].dtype: name for name in names if name in found}
    if not stored:
        raise CheckpointError(f"{folder}: no layer has a matrix that can be cut")
    if len(stored) > 1:
        examples = ", ".join(f"{name} in {dtype}" for dtype, name in sorted(stored.items()))
        raise CheckpointError(
            f"{folder}: the decoder's matrices are stored in {' and '.join(sorted(stored))} "
            f"({examples}); convert them to one dtype"
        )
    return next(iter(stored))
