"""The weight files of a checkpoint, planned from shapes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from runtime.configuration_lowrank import BIASES, Matrix, tensor_shapes
from schemas.model.dtypes import ITEM_BYTES
from schemas.model.spec import Factors, MatrixSpec, ModelSpec, TensorSpec
from schemas.request.quantization import ROTATED, Scheme
from schemas.result.output import FactorSource, MatrixResult, OutputFile, OutputTensor
from schemas.run.ranks import AllocationResult
from workers.checkpoint.names import weight_file
from workers.output import file_bytes
from workers.quantisation.sizes import with_fewer_bits
from workers.truncation.encoding import rotated_rank

_FILE_BYTES = 5 * 10**9
_WEIGHTS = ("down.weight", "up.weight", "dense.weight")  # that a scheme stores otherwise


Cut = MatrixResult | Matrix
"""How a matrix is stored: what its result says, or what its rank promises before it is cut."""


class Part(NamedTuple):
    """One weight file of the checkpoint: the base tensors that it covers, and their matrices."""

    name: str
    tensors: tuple[TensorSpec, ...]
    matrices: frozenset[str]


def plan_parts(spec: ModelSpec, parameters: dict[str, int]) -> list[Part]:
    """Split the base's tensors, in order, into weight files of at most about 5 GB.

    `parameters` is how many parameters of each matrix are to stay.
    """
    owners = spec.linears
    groups: list[list[TensorSpec]] = [[]]
    room = _FILE_BYTES
    for tensor in spec.tensors:
        if tensor.role == "tied":
            continue
        owner, _, leaf = tensor.name.rpartition(".")
        size = tensor.nbytes
        if leaf == "weight" and owner in owners:
            left = sum(parameters.get(matrix.name, matrix.size) for matrix in owners[owner])
            size = left * ITEM_BYTES[tensor.dtype]
        if groups[-1] and size > room:
            groups.append([])
            room = _FILE_BYTES
        groups[-1].append(tensor)
        room -= size
    return [
        Part(
            weight_file(at, len(groups)),
            tuple(group),
            frozenset(
                matrix.name
                for tensor in group
                for matrix in owners.get(tensor.name.rpartition(".")[0], [])
                if matrix.name in parameters
            ),
        )
        for at, group in enumerate(groups)
    ]


def plan_file(
    spec: ModelSpec,
    part: Part,
    results: Mapping[str, Cut],
    keys: Mapping[str, str],
    others: Mapping[str, str] = MappingProxyType({}),
) -> OutputFile:
    """Plan the tensors of a weight file in the base's order; `keys` names each matrix's factors,
    `others` the items of tensors of the base that were trained.
    """
    owners = spec.linears
    planned = []
    for tensor in part.tensors:
        owner, _, leaf = tensor.name.rpartition(".")
        if owner not in owners:
            key = others.get(tensor.name)
            source = None if key is None else FactorSource(key=key, tensor=tensor.name)
            plain = {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape}
            planned.append(OutputTensor(**plain, factors=source))
        elif leaf == "weight":
            for matrix in owners[owner]:
                planned += _matrix_tensors(matrix, results.get(matrix.name), tensor.dtype, keys)
    return OutputFile(name=part.name, tensors=tuple(planned))


def total_bytes(
    spec: ModelSpec, factors: Factors, found: AllocationResult, scheme: Scheme | None = None
) -> int:
    """Return the bytes of all weight files at these ranks, with their headers, unless pivots fall
    back: then they are fewer.

    With a scheme, of the files that `quantize` makes of them. Matrices that are not targeted count
    as they are, so it may make them smaller. Raises ConfigError without compressed-tensors.
    """
    cuts = {m.name: _promised(m, factors, found, scheme) for m in spec.matrices}
    keys = dict.fromkeys(found.ranks, "")
    sizes = {m.name: found.parameters_of(factors, m) for m in spec.matrices}
    files = [plan_file(spec, part, cuts, keys) for part in plan_parts(spec, sizes)]
    if scheme is None:
        return sum(map(file_bytes, files))
    owners = {m.written for parts in spec.linears.values() for m in parts if not m.is_head}
    weights = {f"{owner}.{tail}" for owner in owners for tail in _WEIGHTS}
    return sum(file_bytes(with_fewer_bits(file, weights, scheme, spec.dtype)) for file in files)


def _promised(
    matrix: MatrixSpec, factors: Factors, found: AllocationResult, scheme: Scheme | None
) -> Matrix:
    rank = found.ranks[matrix.name]
    if matrix.name in found.pruned:
        return Matrix(matrix.pruned, rank)
    if rank is not None and scheme in ROTATED and not matrix.is_head:
        factors = "plain"
        rank = rotated_rank(rank, matrix.out_features, matrix.in_features)
    return Matrix("dense" if rank is None else matrix.encoding(factors), rank)


def _matrix_tensors(
    matrix: MatrixSpec, result: Cut | None, dtype: str, keys: Mapping[str, str]
) -> list[OutputTensor]:
    """Plan the tensors of a matrix; one without a result stays as it is."""
    encoding, rank = (result.encoding, result.rank) if result else ("dense", None)
    shapes = tensor_shapes(encoding, rank, matrix.out_features, matrix.in_features, matrix.bias)
    owner = matrix.stored
    rows = {"rows": (matrix.rows.start, matrix.rows.stop)} if matrix.split else {}
    planned = []
    for tail, shape in shapes.items():
        name = f"{matrix.written}.{tail}"
        kind = "I64" if tail == "order" else dtype
        if tail in BIASES and encoding != "pruned-rows":
            source: dict[str, Any] = {"base": f"{owner}.bias", **rows}
        elif encoding == "dense":
            source = {"base": f"{owner}.weight", "transposed": matrix.transposed, **rows}
        else:
            source = {"factors": FactorSource(key=keys[matrix.name], tensor=tail)}
        planned.append(OutputTensor(name=name, dtype=kind, shape=shape, **source))
    return planned
