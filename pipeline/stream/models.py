"""A checkpoint whose layers are to be streamed: its folder, and where its tensors are."""

from pathlib import Path
from typing import NamedTuple

from schemas.location import kept_at_home
from schemas.model.dtypes import STORED
from schemas.request.evaluation import EvaluationConfig
from workers.checkpoint.own_code import may_run_code
from workers.checkpoint.source import Source, on_every_node
from workers.model.inspection import inspect_decoder
from workers.storage.places import size_of, url_of


class Model(NamedTuple):
    """A checkpoint: the name shown to users, its local folder, and its tensors."""

    name: str
    folder: Path
    source: Source

    def stored(self) -> tuple[int, str]:
        """Like `workers.evaluation.perplexity.stored`, but for weights in any place."""
        tensors = self.source.spec.tensors
        place = self.source.spec.weights or self.folder
        size = sum(size_of(place / file) for file in {tensor.file for tensor in tensors})
        return size, "+".join(sorted({t.dtype for t in tensors if t.dtype.startswith(("F", "BF"))}))


def model_of(name: str, folder: Path, config: EvaluationConfig) -> Model:
    """Describe a checkpoint for every node, which reads weights in an object store from there.

    Raises CheckpointError if it cannot be used.
    """
    url = url_of(name)
    spec = inspect_decoder(folder, url)
    may_run_code(folder, trust_remote_code=False)  # the classes of `runtime/` replace its code
    if config.dtype == "auto":
        dtype = next(tensor.dtype for tensor in spec.tensors if tensor.role == "embedding")
    else:
        dtype = STORED[config.dtype]
    at, revision = (str(url), None) if url else on_every_node(name, folder)
    return Model(name, folder, Source(at, revision, spec, dtype, kept_at_home()))
