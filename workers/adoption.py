"""Factors from the files of a finished checkpoint, as items of a run that trains them."""

from runtime.configuration_lowrank import tensor_shapes
from schemas.model.spec import MatrixSpec
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


def adopted_tensors(config: RunConfig) -> TensorReader:
    """Return the tensors of the checkpoint that a run adopts. Raises CheckpointError."""
    place = str(config.adopt)
    folder = resolve(place, None, config.fetched)
    return TensorReader(folder, inspect_decoder(folder, url_of(place)))


def adopt(
    store: Store, ids: Identities, reader: TensorReader, matrix: MatrixSpec, row: MatrixResult
) -> Record:
    """Commit the factors of a matrix as truncation would; `row` says how they are stored.

    The bias is left out: it is the base's. Raises ValueError if the matrix is dense.
    """
    if row.rank is None:
        raise ValueError(f"{matrix.name} is dense: it has no factors")
    shape = matrix.out_features, matrix.in_features
    tails = tensor_shapes(row.encoding, row.rank, *shape, bias=False)
    tensors = {tail: reader.read(f"{matrix.written}.{tail}") for tail in tails}
    key = factors_key(ids.factors, matrix.name, row.rank)
    return store.commit(key, entries(tensors), row.model_dump(mode="json"))
