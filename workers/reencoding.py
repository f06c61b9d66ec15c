"""The weights of a compressed checkpoint in another form: other factors, or matrices whole again.

Nothing but the checkpoint is read; the most that is in memory is one new weight file.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from runtime.configuration_lowrank import BIASES, WHOLE, tensor_shapes
from runtime.modeling_lowrank import LowRankLinear, SplitLinear
from schemas.model.spec import PRUNED, DecoderSpec, Encoding, Factors
from schemas.result.output import OutputFile, OutputTensor
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import Config, stock
from workers.checkpoint.names import CONFIG, weight_file
from workers.checkpoint.tensors import TensorReader
from workers.model.description import is_column_parallel
from workers.model.reading import Places
from workers.model.skeleton import resized, skeleton
from workers.storage.tensorfile import DTYPES, NAMES, Entry, entries, write_tensors
from workers.truncation.encoding import (
    Stored,
    dtype_of,
    factors_of,
    padded,
    pivoted_factors,
    plain_factors,
    rotated_factors,
    rotated_rank,
    whole,
)

_FILE_BYTES = 5 * 10**9


class Cut(NamedTuple):
    """A matrix of a compressed checkpoint. `name` is relative to the base model; in the files,
    `owner` is before the names of its tensors, and `linear` names the layer that it is a part of,
    or is; in the model, that is at `place`. `module` is on the meta device; the rest is as in
    `MatrixSpec`.
    """

    name: str
    place: str
    linear: str
    owner: str
    module: LowRankLinear
    column_parallel: bool
    transposed: bool

    @property
    def tails(self) -> list[str]:
        """The names of its tensors in runtime/."""
        return list(self.module.state_dict())

    def read(self, reader: TensorReader) -> dict[str, Tensor]:
        """Return its tensors by these names."""
        return {tail: reader.read(f"{self.owner}.{tail}") for tail in self.tails}


def cuts_of(folder: Path, spec: DecoderSpec) -> list[Cut]:
    """Return every matrix of a compressed checkpoint, in the order of the model."""
    config, where = read_config(folder), str(folder / CONFIG)
    model, base = (skeleton(c, where, torch.bfloat16) for c in (config, stock(config)))
    places = Places(model)
    files = {places.of(tensor.name)[0]: tensor.name for tensor in spec.tensors}
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, LowRankLinear):
            continue
        tail = next(iter(module.state_dict()))
        owner = files[f"{path}.{tail}"].removesuffix(f".{tail}")
        parent = path.rpartition(".")[0]
        is_part = isinstance(model.get_submodule(parent), SplitLinear)
        whole = parent if is_part else path
        found.append(
            Cut(
                name=path.removeprefix(f"{model.base_model_prefix}."),
                place=whole,
                linear=owner.rpartition(".")[0] if is_part else owner,
                owner=owner,
                module=module,
                column_parallel=is_column_parallel(base, whole),
                transposed=isinstance(base.get_submodule(whole), Conv1D),
            )
        )
    return found


def as_factors(cut: Cut, tensors: dict[str, Tensor], factors: Factors) -> Stored | None:
    """Store the W' of a matrix as these factors. None if it is one matrix (dense, or without some
    neurons), or stored so already.
    """
    encoding: Encoding = factors
    if factors == "pivoted" and cut.column_parallel:
        encoding = "pivoted-columns"
    if cut.module.encoding in (*WHOLE, encoding):
        return None
    a, b = factors_of(cut.module.encoding, tensors)
    dtype = dtype_of(tensors)
    if factors == "plain":
        return plain_factors(a, b, dtype)
    return pivoted_factors(a, b, dtype, cut.column_parallel)


def as_rotated(cut: Cut, tensors: dict[str, Tensor], seed: int) -> Stored | None:
    """Store the W' of a matrix for rounding: as rotated factors or, if they have no fewer numbers,
    multiplied out. None if it is one matrix already.

    Pivoted factors cannot be rotated, and errors of the one factor are multiplied by the other.
    """
    if cut.module.encoding in WHOLE:
        return None
    a, b = factors_of(cut.module.encoding, tensors)
    rank = rotated_rank(len(b), len(a), b.shape[1])
    if rank is None:
        return whole(a, b, dtype_of(tensors))
    return rotated_factors(a, b, dtype_of(tensors), rank, seed)


def with_bias(cut: Cut, stored: Stored, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the files are to hold of a matrix that is stored anew: its bias stays."""
    linear = cut.module
    bias = [tensor for tail, tensor in tensors.items() if tail in BIASES]
    shapes = tensor_shapes(*stored.matrix, linear.out_features, linear.in_features, bool(bias))
    return {tail: bias[0] if tail in BIASES else stored.tensors[tail] for tail in shapes}


def narrowed(config: Config, where: str, cuts: Sequence[Cut]) -> dict[str, Any] | None:
    """Return the config.json of transformers' own classes for MLPs that lack neurons. None if there
    is none: MLPs of one size keep different numbers, or no entry says how many they have.

    `config`, named `where` in errors, is that of the whole matrices.
    """
    pruned = [cut.module for cut in cuts if cut.module.encoding in PRUNED]
    sizes = {
        module.shape[module.encoding == "pruned-columns"]: module.rank
        for module in pruned
        if module.rank is not None
    }
    return resized(config, where, sizes, _left(cuts)) if sizes else None


def _left(cuts: Sequence[Cut]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is left of the linear layers that these matrices are parts of."""
    places: dict[str, list[Cut]] = {}
    for cut in cuts:
        places.setdefault(cut.place, []).append(cut)
    found = dict[str, tuple[int, ...]]()
    for place, parts in places.items():
        rows, columns = sum(cut.module.out_features for cut in parts), parts[0].module.in_features
        found[f"{place}.weight"] = (columns, rows) if parts[0].transposed else (rows, columns)
        if parts[0].module.bias is not None:
            found[f"{place}.bias"] = (rows,)
    return found


def merged(
    cuts: Sequence[Cut], tensors: Sequence[dict[str, Tensor]], narrow: bool = False
) -> dict[str, Tensor]:
    """Return weight and bias of the linear layer that these matrices are, or are all parts of;
    zeros are in the place of neurons that are gone, unless it is to be `narrow`.
    """
    weights, biases = [], []
    for cut, stored in zip(cuts, tensors, strict=True):
        m, n = (cut.module.out_features, cut.module.in_features) if narrow else cut.module.shape
        biases += [padded(tensor, m) for tail, tensor in stored.items() if tail in BIASES]
        if cut.module.encoding in WHOLE:
            weights.append(padded(stored["dense.weight"], m, n))
            continue
        a, b = factors_of(cut.module.encoding, stored)
        weights.append((a @ b).to(dtype_of(stored)))
    weight = torch.cat(weights)
    found = {"weight": weight.T if cuts[0].transposed else weight}
    return found | ({"bias": torch.cat(biases)} if biases else {})


def write_weights(
    folder: Path,
    spec: DecoderSpec,
    reader: TensorReader,
    cuts: Sequence[Cut],
    restate: Callable[[list[Cut]], dict[str, Tensor]],
) -> list[OutputFile]:
    """Write weight files of at most about 5 GB: what `restate` makes of the matrices of each linear
    layer, by its names in the files, and every other tensor as it is.
    """
    linears: dict[str, list[Cut]] = {}
    for cut in cuts:
        linears.setdefault(cut.linear, []).append(cut)
    linear_of = {f"{cut.owner}.{tail}": cut.linear for cut in cuts for tail in cut.tails}
    written: list[tuple[OutputTensor, ...]] = []
    waiting: list[Entry] = []

    def flush() -> None:
        write_tensors(folder / f"{len(written)}.part", waiting)
        written.append(
            tuple(OutputTensor(name=e.name, dtype=NAMES[e.dtype], shape=e.shape) for e in waiting)
        )
        waiting.clear()

    for tensor in spec.tensors:
        linear = linear_of.get(tensor.name)
        if linear is None:
            load = partial(reader.read, tensor.name)
            new = [Entry(tensor.name, DTYPES[tensor.dtype], tensor.shape, load)]
        elif linear in linears:
            new = entries(restate(linears.pop(linear)))
        else:
            continue
        if waiting and sum(entry.nbytes for entry in (*waiting, *new)) > _FILE_BYTES:
            flush()
        waiting += new
    flush()
    files = []
    for at, tensors in enumerate(written):
        files.append(OutputFile(name=weight_file(at, len(written)), tensors=tensors))
        (folder / f"{at}.part").rename(folder / files[-1].name)
    return files
