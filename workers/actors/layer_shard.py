"""The Ray actors: thin shells around `Shard`, `Compressor` and `RankAllocator`.

They return records and small rows. The hidden states of one micro-batch, on their way from one
shard to the next, are the only tensors that travel between actors; the driver sees none of them.
"""

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import ray
import torch
from torch import Tensor

from schemas.errors import ConfigError
from schemas.location import Location, Url
from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.request.config import RunConfig
from schemas.result.manifest import Check
from schemas.result.output import OutputFile
from schemas.run.identity import Identities, Record
from schemas.run.moments import Pass, Tap
from schemas.run.plan import LayerRange, WorkerFacts
from workers.actors.metrics import count_traffic, show_memory
from workers.actors.probe import worker_facts
from workers.actors.tensors import share_tensors
from workers.calibration.moments import MomentSums
from workers.checkpoint.fetching import resolve
from workers.checkpoint.stored import at_hand
from workers.checkpoint.tensors import torch_dtype
from workers.checkpoint.verify import LIMIT_S, verify_checkpoint
from workers.compressor import Compressor
from workers.model.layers import Decoder
from workers.model.shard import Purpose, Shard, Step
from workers.output import write_file
from workers.process.devices import compute_dtype, find_device, free_cached, set_threads
from workers.process.failures import guarded, patiently
from workers.process.logs import set_up_logging
from workers.process.memory import peak_anonymous_bytes
from workers.storage.keys import RUN_RECORD
from workers.storage.moments import commit_moment, commit_part, merge_parts
from workers.storage.places import exists, transfer
from workers.storage.store import Store
from workers.storage.tensorfile import entries
from workers.text.documents import evaluation_source


@ray.remote
class LayerShard:
    """Owns a contiguous range of decoder layers on one device."""

    def __init__(self, config: RunConfig, spec: ModelSpec) -> None:
        set_up_logging()
        count_traffic()
        share_tensors()
        set_threads(config.numerics.threads)
        self._config = config
        self._spec = spec
        self._shard: Shard | None = None
        self._busy = 0.0
        self._adaptations: dict[str, None] = {}  # each once, in order

    @property
    def place(self) -> Location:
        """Where what this worker writes is kept."""
        return self._config.run_folder

    @guarded(repeatable=True)
    def prepare(self) -> WorkerFacts:
        """Find checkpoint and device (here, so that an error keeps its words): what they are.

        Raises ConfigError where the checkpoint is a folder that this node does not see.
        """
        model = Path(self._config.model)
        if model.is_absolute() and not model.is_dir():
            raise _not_seen("model", model)
        self._folder = resolve(self._config.model, self._config.revision, self._config.fetched)
        self._device = find_device(self._config.cluster.device)
        self._dtype = compute_dtype(self._config.numerics.dtype, self._spec.dtype, self._device)
        show_memory(self._device)
        return worker_facts(self._device, self._dtype)

    @guarded(repeatable=True)
    def identify(self, ids: Identities) -> None:
        """Say which items this run reads and writes. Raises ConfigError where it sees none."""
        if not exists(self._config.run_folder / RUN_RECORD):
            raise _not_seen("run_dir", self._config.run_folder)
        self._ids = ids
        self._store = Store(self._config.run_folder)
        self._compressor = Compressor(
            self._config, self._spec, self._folder, ids, self._device, self._loaded_weight
        )

    @guarded(repeatable=True)
    def load(self, layers: LayerRange, taps: Sequence[Tap]) -> None:
        """Read the weights of `layers`, and observe them at `taps`."""
        decoder = Decoder(self._folder, self._spec, self._dtype, self._device)
        last = layers.stop == self._spec.layers
        self._shard = Shard(
            decoder, layers.range, layers.start == 0, last, taps, self._adaptations.setdefault
        )

    @guarded(repeatable=True)
    def read(self, key: str) -> Tensor:
        """Hidden states or gradients (sequences, tokens, hidden) that an earlier wave left."""
        return self._store.load(key).tensors["rows"]

    @guarded(repeatable=True)
    def write(self, key: str, rows: Tensor) -> None:
        """Leave hidden states or gradients for another wave."""
        self._store.commit(key, entries({"rows": rows}))

    @guarded()
    def forward(self, hidden: Tensor, step: Step, purpose: Purpose) -> Tensor | None:
        """One micro-batch through these layers, after the last of the model: None, or (for a
        gradient) the gradient of its loss."""
        with self._working():
            output = self._loaded.forward(hidden.to(self._device), step, purpose)
            if not self._loaded.is_last:
                return output.cpu()
            if purpose != "gradient":
                return None
            return self._loaded.loss_gradient(output, step, self._config.seed).cpu()

    @guarded()
    def backward(self, gradient: Tensor, step: Step) -> Tensor | None:
        """One gradient back through these layers; None before the first of the model."""
        with self._working():
            below = self._loaded.backward(gradient.to(self._device), step)
            return None if self._loaded.is_first else below.cpu()

    def busy_seconds(self) -> float:
        """Seconds spent on micro-batches since this was last asked."""
        seconds, self._busy = self._busy, 0.0
        return seconds

    def adaptations(self) -> list[str]:
        """What this worker did otherwise than planned, for want of memory."""
        return list(self._adaptations)

    @guarded()
    def commit_moments(self, direction: Pass, replica: int, replicas: int) -> list[Record]:
        """Commit the moments of one stream, or this replica's part of them, and let each go."""

        def commit(tap: Tap, sums: MomentSums) -> Record:
            notes = tuple(self._adaptations)
            if replicas == 1:
                return commit_moment(self._store, self._ids, tap, sums, notes)
            return commit_part(self._store, self._ids, tap, sums, replica, replicas, notes)

        return [
            patiently(partial(commit, tap, sums)) for tap, sums in self._loaded.take_sums(direction)
        ]

    @guarded(repeatable=True)
    def merge_moments(self, taps: Sequence[Tap], replicas: int) -> list[Record]:
        """Commit the moments of `taps` from the parts of all replicas."""
        return [merge_parts(self._store, self._ids, tap, replicas) for tap in taps]

    @guarded()
    def release(self) -> None:
        """Let the weights go, before matrices are factorised on the same device."""
        self._shard = None
        free_cached()  # hooks refer to the shard that holds their modules

    @guarded(repeatable=True)
    def factorise(self, group: Sequence[MatrixSpec]) -> list[Record]:
        """Commit basis and spectrum of matrices that share the root of their input moment."""
        return self._compressor.factorise(group)

    @guarded(repeatable=True)
    def truncate(self, matrix: MatrixSpec, rank: int) -> Record:
        """Commit the factors of a matrix at a rank."""
        return self._compressor.truncate(matrix, rank)

    @guarded(repeatable=True)
    def write_output(self, key: str, plan: OutputFile) -> Record:
        """Commit one file of the compressed checkpoint."""
        return write_file(self._store, self._folder, self._spec, key, plan)

    @guarded(repeatable=True)
    def upload(self, key: str, url: Url) -> None:
        """Copy a committed item to an object store."""
        transfer(self._store.place(key), url)

    @guarded(repeatable=True)
    def verify(self, folder: str) -> list[Check]:
        """Check a written checkpoint, with a load in a clean process."""
        return self._verify(Path(folder), {})

    @guarded()
    def verify_stored(self, place: Url, weights: Mapping[str, str]) -> list[Check]:
        """The same where its small files are at `place` and its weights are items, by file name."""
        items = {name: Url(str(self._store.place(key))) for name, key in weights.items()}
        with at_hand(place, items) as (folder, stored):
            return self._verify(folder, stored)

    def _verify(self, folder: Path, stored: Mapping[str, Url]) -> list[Check]:
        """The load has half the time of an item, so that it ends before the item does."""
        limit_s = min(LIMIT_S, self._config.cluster.item_timeout_s / 2)
        return verify_checkpoint(folder, False, self._base_to_compare, stored, limit_s)

    def peak_memory(self) -> int:
        """Peak of the anonymous memory of this worker, in bytes."""
        return peak_anonymous_bytes()

    @property
    def _base_to_compare(self) -> Path | None:
        """The folder of a base whose weights are there, where the run compares with it."""
        asked = self._config.evaluation.text, self._config.calibration.text
        compares = evaluation_source(*asked) is not None
        return self._folder if compares and self._spec.weights is None else None

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._busy += time.perf_counter() - start

    def _loaded_weight(self, matrix: MatrixSpec) -> Tensor | None:
        """The weight as it is on the device, where its compute dtype holds every stored value."""
        exact = torch.promote_types(torch_dtype(self._spec), self._dtype) == self._dtype
        return self._shard.weight(matrix) if self._shard is not None and exact else None

    @property
    def _loaded(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("no layers loaded")
        return self._shard


def _not_seen(what: str, place: Location) -> ConfigError:
    return ConfigError(
        f"{what} {place} is not seen on {socket.gethostname()}; name a folder on storage that all "
        "nodes share, or a URL of an object store"
    )
