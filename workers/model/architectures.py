"""What is derived of a kind of model: what would be cut, what shares its input, what stays."""

from collections import Counter
from typing import NamedTuple

from schemas.model.spec import ModelSpec
from schemas.request.compression import CompressionConfig
from schemas.run.targets import select
from workers.model.inspection import read_spec


class Architecture(NamedTuple):
    """A kind of model. `path` is the name of its list of `layers` layers.

    `groups` are the paths of matrices that read one input, `stays` the modules of layers whose
    parameters stay as they are, and parts of others; each with the number of its layers.
    """

    kind: str
    path: str
    layers: int
    groups: dict[tuple[str, ...], int]
    stays: dict[str, int]


def derive(model: str, config: CompressionConfig) -> Architecture:
    """Describe what a configuration chooses of a checkpoint (a folder, a config.json, a hub id or a
    URL) of any kind. Raises CheckpointError as `inspect` does, and ConfigError as `select` does.
    """
    return describe(select(config, read_spec(model, None, dequantize=True)))


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
    stays = [(name.partition(f".{layer}.")[2], layer) for layer, name in owners if name not in cut]
    chosen = {matrix.name for matrix in spec.matrices}
    stays += [
        (m.path, m.layer) for parts in spec.linears.values() for m in parts if m.name not in chosen
    ]
    heads = [matrix for matrix in spec.matrices if matrix.is_head]  # in no layer
    return Architecture(
        kind=spec.model_type,
        path=spec.path,
        layers=spec.layers,
        groups={**Counter(map(tuple, groups.values())), **{(m.path,): spec.layers for m in heads}},
        stays=Counter(name for name, _ in dict.fromkeys(stays) if name),
    )
