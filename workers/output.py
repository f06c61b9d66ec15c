"""Writing one weight file of the compressed checkpoint, a tensor at a time."""

from functools import lru_cache, partial

from torch import Tensor

from schemas.result.output import OutputFile, OutputTensor
from schemas.run.identity import Record
from workers.checkpoint.tensors import TensorReader
from workers.storage.store import Store
from workers.storage.tensorfile import DTYPES, Entry, size_in_file


def write_file(store: Store, reader: TensorReader, key: str, plan: OutputFile) -> Record:
    """Commit `plan` as item `key`: tensors as `reader` has them, factors from the run's items."""
    factors = lru_cache(maxsize=1)(lambda key: store.load(key).tensors)  # checked, then sliced

    def load(tensor: OutputTensor) -> Tensor:
        if tensor.factors is not None:
            return factors(tensor.factors.key)[tensor.factors.tensor]
        stored = reader.read(tensor.base or tensor.name)
        stored = stored.T if tensor.transposed else stored
        return stored if tensor.rows is None else stored[slice(*tensor.rows)]

    return store.commit(
        key,
        [Entry(one.name, DTYPES[one.dtype], one.shape, partial(load, one)) for one in plan.tensors],
    )


def file_bytes(plan: OutputFile) -> int:
    """Return the size of the file that `plan` describes."""
    return size_in_file(outline(plan))


def outline(plan: OutputFile) -> list[Entry]:
    """Return its tensors, without values."""
    return [Entry(one.name, DTYPES[one.dtype], one.shape) for one in plan.tensors]
