"""The Ray actor of a streamed evaluation: a thin shell around `ScoringShard`."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ray

from schemas.errors import ConfigError
from schemas.location import Location
from schemas.model.spec import DecoderSpec
from schemas.request.config import Device
from schemas.run.plan import LayerRange, WorkerFacts
from workers.actors.metrics import count_traffic, show_memory
from workers.actors.probe import worker_facts
from workers.actors.tensors import share_tensors
from workers.checkpoint.fetching import resolve
from workers.evaluation.scoring import Rows, Score, ScoringShard
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step
from workers.process.devices import find_device, free_cached, set_threads
from workers.process.logs import set_up_logging
from workers.storage.store import Store
from workers.storage.tensorfile import DTYPES, entries


class Source(NamedTuple):
    """A checkpoint in words that mean the same on every node; `dtype` is safetensors' name.

    `fetched` is for the small files of one in an object store.
    """

    model: str
    revision: str | None
    spec: DecoderSpec
    dtype: str
    fetched: Path | None = None


@ray.remote
class EvaluationShard:
    """Owns the same part of one or two decoders on one device."""

    def __init__(self, sources: Sequence[Source], device: Device, threads: int) -> None:
        set_up_logging()
        count_traffic()
        share_tensors()
        set_threads(threads)
        self._sources = sources
        self._asked = device
        self._shard: ScoringShard | None = None

    def prepare(self) -> WorkerFacts:
        """Find checkpoints and device (here, so that an error keeps its words): what it is."""
        self._device = find_device(self._asked)
        self._folders = [resolve(s.model, s.revision, s.fetched) for s in self._sources]
        show_memory(self._device)
        return worker_facts(self._device, DTYPES[self._sources[-1].dtype])

    def join(self, place: Location) -> None:
        """Say where rows wait between waves. Raises ConfigError where that is not seen here."""
        if isinstance(place, Path) and not place.is_dir():
            raise ConfigError(
                f"work_dir {place.parent} is not seen on {socket.gethostname()}; name a folder "
                "on storage that all nodes share"
            )
        self._store = Store(place)

    def load(self, layers: Sequence[LayerRange]) -> None:
        """Let go what is loaded, and read the weights of a range of layers of each model."""
        self._shard = None
        free_cached()
        shards = []
        for source, folder, part in zip(self._sources, self._folders, layers, strict=True):
            decoder = Decoder(folder, source.spec, DTYPES[source.dtype], self._device)
            last = part.stop == source.spec.layers
            shards.append(Shard(decoder, part.range, part.start == 0, last, taps=()))
        self._shard = ScoringShard(shards, self._device)

    def forward(self, rows: Rows, step: Step) -> Rows | Score:
        """One micro-batch through these layers."""
        return self._loaded.forward(rows, step)

    def seconds(self) -> list[float]:
        """Those that the layers loaded now have taken of each model."""
        return self._loaded.seconds

    def read(self, key: str) -> Rows:
        """Rows that an earlier wave left."""
        tensors = self._store.load(key).tensors
        tokens = tensors.pop("tokens")
        return Rows(tokens, tuple(tensors[str(model)] for model in range(len(tensors))))

    def write(self, key: str, rows: Rows) -> None:
        """Leave rows for another wave."""
        hidden = {str(model): states for model, states in enumerate(rows.hidden)}
        self._store.commit(key, entries({"tokens": rows.tokens} | hidden))

    @property
    def _loaded(self) -> ScoringShard:
        if self._shard is None:
            raise RuntimeError("no layers loaded")
        return self._shard
