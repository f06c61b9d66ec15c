"""What is derived of a kind of model: what would be cut, what shares its input, what stays."""

import json
from typing import NamedTuple

from schemas.model.spec import ModelSpec
from schemas.request.config import CompressionConfig
from schemas.request.groups import TargetsConfig
from schemas.run.targets import select
from workers.model.inspection import planned, read_spec
from workers.model.kinds import tiny_config

# The matrices of tiny models are small; a gate of one row is left out, as it would be.
_EVERYTHING = CompressionConfig(ratio=(0.2,), targets=TargetsConfig(min_features=2))


class Architecture(NamedTuple):
    """A kind of model. `path` is the name of its list of layers.

    `groups` are the paths of matrices that read one input, of any layer; `stays` are the modules of
    layers whose parameters stay as they are, and parts of others.
    """

    kind: str
    path: str
    groups: tuple[tuple[str, ...], ...]
    stays: tuple[str, ...]


def derive(kind: str) -> Architecture:
    """Describe a tested kind, by its tiny model. Raises CheckpointError as `inspect` does."""
    config = json.loads(tiny_config(kind).to_json_string(use_diff=False))
    return describe(select(_EVERYTHING, planned(config, kind, "F32")))


def derive_from(model: str) -> Architecture:
    """Describe a checkpoint (a folder, a config.json, a hub id or a URL) of any kind."""
    spec = read_spec(model, None, dequantize=True)
    return describe(select(CompressionConfig(ratio=(0.2,)), spec))


def describe(spec: ModelSpec) -> Architecture:
    """Describe the matrices that are to be cut of a model."""
    groups: dict[tuple[int, str], list[str]] = {}
    for matrix in spec.matrices:
        groups.setdefault((matrix.layer, matrix.reads), []).append(matrix.path)
    cut = {matrix.stored for matrix in spec.matrices}
    owners = [
        (tensor.layer, tensor.name.rpartition(".")[0])
        for tensor in spec.tensors
        if tensor.layer is not None
    ]
    stays = [name.partition(f".{layer}.")[2] for layer, name in owners if name not in cut]
    chosen = {matrix.name for matrix in spec.matrices}
    stays += [m.path for parts in spec.linears for m in parts if m.name not in chosen]
    return Architecture(
        kind=spec.model_type,
        path=spec.path,
        groups=tuple(dict.fromkeys(map(tuple, groups.values()))),
        stays=tuple(dict.fromkeys(name for name in stays if name)),
    )
