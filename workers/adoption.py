"""A finished checkpoint that a run begins with: its factors as items, and the dense model that it
stands for.
"""

from pathlib import Path

import torch
from torch import Tensor

from runtime.configuration_lowrank import BIASES, tensor_shapes
from schemas.location import Location
from schemas.model.spec import DecoderSpec, Encoding, MatrixSpec, ModelSpec
from schemas.request.config import RunConfig
from schemas.result.output import MatrixResult
from schemas.run.identity import Identities, Record
from workers.checkpoint.fetching import resolve
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect_decoder
from workers.storage.keys import factors_key
from workers.storage.places import url_of
from workers.storage.store import Store
from workers.storage.tensorfile import entries
from workers.truncation.encoding import dtype_of, factors_of, padded

_TENSORS = ("dense.weight", "up.weight", "down.weight", "order")


class DenseReader(TensorReader):
    """Reads a finished checkpoint as a dense model, by the names that tensors have in its base.

    A matrix is the product of its factors, taken in float32 on `device` and rounded to their dtype;
    anything else is as the checkpoint has it. Its own tensors are read by their own names, too.
    """

    def __init__(
        self, folder: Path, spec: DecoderSpec, base: ModelSpec, device: torch.device
    ) -> None:
        super().__init__(folder, spec)
        self._linears = base.linears
        self._device = device

    def read(self, name: str) -> Tensor:
        """Return a tensor of the base, as it is in this model; or one of this checkpoint."""
        owner, _, leaf = name.rpartition(".")
        if name in self._tensors or owner not in self._linears:
            return super().read(name)
        parts = self._linears[owner]
        if leaf != "weight":
            return torch.cat([self._read_bias(m) for m in parts])
        found = torch.cat([self._matrix(m) for m in parts])
        return found.T.contiguous() if parts[0].transposed else found

    def file(self, name: str) -> Location:
        """Return the file that holds a tensor, or the first of those that make it."""
        owner = name.rpartition(".")[0]
        if name in self._tensors or owner not in self._linears:
            return super().file(name)
        prefix = f"{self._linears[owner][0].written}."
        return super().file(next(own for own in self._tensors if own.startswith(prefix)))

    def _read_bias(self, matrix: MatrixSpec) -> Tensor:
        names = (f"{matrix.written}.{bias}" for bias in BIASES)
        found = super().read(next(name for name in names if name in self._tensors))
        return padded(found, matrix.out_features)

    def _matrix(self, matrix: MatrixSpec) -> Tensor:
        """Return W' (m, n) of a matrix, as it is stored or as the product of its factors."""
        names = {tail: f"{matrix.written}.{tail}" for tail in _TENSORS}
        found = {
            tail: super(DenseReader, self).read(name).to(self._device)
            for tail, name in names.items()
            if name in self._tensors
        }
        if "dense.weight" in found:
            return padded(found["dense.weight"], matrix.out_features, matrix.in_features)
        encoding: Encoding = "pivoted" if "order" in found else "plain"
        if "order" in found and len(found.get("up.weight", ())) == matrix.out_features:
            encoding = "pivoted-columns"  # those by rows have fewer rows in `up`
        a, b = factors_of(encoding, found)
        return (a.float() @ b.float()).to(dtype_of(found))


def tensors_of(
    config: RunConfig, folder: Path, spec: ModelSpec, device: torch.device
) -> TensorReader:
    """Return the tensors that a run begins with, by the names of its base in `folder`: the base's
    own, or those of the checkpoint that it adopts. Raises CheckpointError.
    """
    if config.adopt is None:
        return TensorReader(folder, spec)
    place = str(config.adopt)
    adopted = resolve(place, None, config.fetched)
    return DenseReader(adopted, inspect_decoder(adopted, url_of(place)), spec, device)


def adopt(
    store: Store, ids: Identities, reader: TensorReader, matrix: MatrixSpec, row: MatrixResult
) -> Record:
    """Commit the factors of a matrix as truncation would; `row` says how they are stored.

    The bias is left out, as it is the base's, unless it lacks some neurons. Raises ValueError if
    the matrix is dense.
    """
    if row.rank is None:
        raise ValueError(f"{matrix.name} is dense: it has no factors")
    shape = matrix.out_features, matrix.in_features
    own_bias = matrix.bias and row.encoding == "pruned-rows"
    tails = tensor_shapes(row.encoding, row.rank, *shape, bias=own_bias)
    tensors = {tail: reader.read(f"{matrix.written}.{tail}") for tail in tails}
    key = factors_key(ids, matrix.name, row.rank, row.is_pruned)
    return store.commit(key, entries(tensors), row.model_dump(mode="json"))
