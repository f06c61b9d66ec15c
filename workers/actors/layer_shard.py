"""The Ray actor of every worker: a thin shell around `Shard`, `Compressor` and `ScoringShard`.

It returns records and small rows. The hidden states of one micro-batch, on their way from one shard
to the next, are the only tensors that travel between actors; the driver sees none of them.
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

from schemas.errors import WorkerError
from schemas.location import Location, Url
from schemas.model.spec import MatrixSpec, ModelSpec, Neurons
from schemas.request.config import RunConfig
from schemas.request.groups import Device
from schemas.result.manifest import Check
from schemas.result.output import MatrixResult, OutputFile
from schemas.run.identity import Identities, Record
from schemas.run.moments import Pass, Tap
from schemas.run.plan import LayerRange, WorkerFacts
from workers.actors.metrics import count_traffic, show_memory
from workers.actors.probe import own_device, worker_facts
from workers.actors.tensors import share_tensors
from workers.adoption import adopt, tensors_of
from workers.calibration.moments import MomentSums
from workers.checkpoint.fetching import resolve
from workers.checkpoint.source import Source
from workers.checkpoint.stored import at_hand
from workers.checkpoint.verify import LIMIT_S, Writes, verify_checkpoint
from workers.compressor import Compressor
from workers.evaluation.scoring import Rows, Score, ScoringShard
from workers.model.layers import Decoder
from workers.model.shard import Purpose, Shard, Step
from workers.output import write_file
from workers.process.devices import compute_dtype, free_cached, set_threads
from workers.process.failures import guarded, not_seen, patiently, require_seen
from workers.process.logs import set_up_logging
from workers.process.memory import peak_anonymous_bytes
from workers.pruner import Pruner
from workers.storage.keys import RUN_RECORD
from workers.storage.moments import commit_moment, commit_part, merge_parts
from workers.storage.places import exists, transfer
from workers.storage.store import Store
from workers.storage.tensorfile import DTYPES, entries


@ray.remote
class LayerShard:
    """Holds contiguous decoder layers of one model, or of the one or two that are scored."""

    place: Location = Path()
    """Where this worker writes its items."""

    def __init__(self, threads: int) -> None:
        set_up_logging()
        count_traffic()
        share_tensors()
        set_threads(threads)
        self._shard: Shard | None = None
        self._scoring: ScoringShard | None = None
        self._busy = 0.0
        self._adaptations: dict[str, None] = {}  # each once, in order

    @guarded(repeatable=True)
    def prepare(self, config: RunConfig, spec: ModelSpec) -> WorkerFacts:
        """Find the checkpoint and the device of a compression; return what they are.

        Raises ConfigError if it, or what is adopted, is a folder that this node does not see.
        """
        self._config, self._spec, self.place = config, spec, config.run_folder
        require_seen("model", Path(config.model))
        if config.adopt is not None:
            require_seen("checkpoint", config.adopt)
        self._folder = resolve(self._config.model, self._config.revision, self._config.fetched)
        self._device = own_device(self._config.cluster.device)
        self._tensors = tensors_of(config, self._folder, spec, self._device)
        self._dtype = compute_dtype(self._config.numerics.dtype, self._spec.dtype, self._device)
        show_memory(self._device)
        return worker_facts(self._device, self._dtype, self._config.numerics.dtype)

    @guarded(repeatable=True)
    def identify(self, ids: Identities) -> None:
        """Set the identities of this run's items. Raises ConfigError if run.json is missing."""
        if not exists(self._config.run_folder / RUN_RECORD):
            raise not_seen("run_dir", self._config.run_folder)
        self._ids = ids
        self._store = Store(self._config.run_folder)
        self._compressor = Compressor(
            self._config, self._spec, self._tensors, ids, self._device, self._loaded_weight
        )
        self._pruner = Pruner(self._compressor)

    def enlist(
        self, config: RunConfig, spec: ModelSpec, ids: Identities, others: WorkerFacts
    ) -> None:
        """Do both for a run that is under way. Raises WorkerError if this worker is of another kind
        than the `others`.
        """
        mine = self.prepare(config, spec)
        if mine.kind != others.kind:
            raise WorkerError(
                f"a worker on {socket.gethostname()} differs in device or dtype ({mine.kind}, and "
                f"the others {others.kind}), so its numbers would"
            )
        self.identify(ids)

    @guarded(repeatable=True)
    def prepare_scoring(self, sources: Sequence[Source], device: Device) -> WorkerFacts:
        """Find the checkpoints and the device of an evaluation; return what they are.

        Raises ConfigError if one is a folder that this node does not see.
        """
        for source in sources:
            require_seen("model", Path(source.model))
        found = own_device(device)
        self._scoring = ScoringShard(sources, found)
        show_memory(found)
        return worker_facts(found, DTYPES[sources[-1].dtype], "auto")

    @guarded(repeatable=True)
    def join(self, place: Location) -> None:
        """Set where rows wait between waves. Raises ConfigError if this node does not see it."""
        if isinstance(place, Path) and not place.is_dir():
            raise not_seen("work_dir", place.parent)
        self.place, self._store = place, Store(place)

    @guarded(repeatable=True)
    def load_models(self, layers: Sequence[LayerRange]) -> None:
        """Release what is loaded, and read a range of layers of each model that is scored."""
        self._shard = None
        self._scored.load(layers)

    def seconds(self) -> list[float]:
        """Return the seconds that the layers loaded now have taken, per scored model."""
        return self._scored.seconds

    @guarded(repeatable=True)
    def load(self, layers: LayerRange, taps: Sequence[Tap]) -> None:
        """Read the weights of `layers`, and observe them at `taps`."""
        decoder = Decoder(self._folder, self._spec, self._dtype, self._device, self._tensors)
        self._shard = Shard(decoder, layers.range, taps, self._adaptations.setdefault)

    @guarded(repeatable=True)
    def read(self, key: str, *_after: object) -> Tensor | Rows:
        """Read hidden states or gradients (sequences, tokens, hidden) of an earlier wave.

        Ray awaits what it is to come after, and passes a failure of that on.
        """
        tensors = self._store.load(key).tensors
        return Rows.of(tensors) if "tokens" in tensors else tensors["rows"]

    @guarded(repeatable=True)
    def write(self, key: str, rows: Tensor | Rows) -> None:
        """Write hidden states or gradients for another wave."""
        named = rows.named() if isinstance(rows, Rows) else entries({"rows": rows})
        self._store.commit(key, named)

    @guarded()
    def forward(
        self, hidden: Tensor | Rows, step: Step, purpose: Purpose = "output"
    ) -> Tensor | Rows | Score | None:
        """Run one micro-batch through these layers. After the model's last layer: None, or the
        gradient of its loss if `purpose` is "gradient". Scored models, see `ScoringShard`."""
        if isinstance(hidden, Rows):
            return self._scored.forward(hidden, step, purpose)
        with self._working():
            output = self._loaded.forward(hidden.to(self._device), step, purpose)
            if not self._loaded.is_last:
                return output.cpu()
            if purpose != "gradient":
                return None
            return self._loaded.loss_gradient(output, step, self._config.seed).cpu()

    @guarded()
    def backward(self, gradient: Tensor, step: Step) -> Tensor | None:
        """Run one gradient back through these layers; None before the first of the model."""
        with self._working():
            below = self._loaded.backward(gradient.to(self._device), step)
            return None if self._loaded.is_first else below.cpu()

    def busy_seconds(self) -> float:
        """Return the seconds spent on micro-batches since the last call."""
        seconds, self._busy = self._busy, 0.0
        return seconds

    def adaptations(self) -> list[str]:
        """Return how this worker deviated from the plan for lack of memory."""
        return list(self._adaptations)

    @guarded()
    def commit_moments(self, direction: Pass, replica: int, replicas: int) -> list[Record]:
        """Commit one stream's moments, or this replica's part of them, and release each."""

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
        """Release the weights: all that needs them is done."""
        self._shard = self._scoring = None
        free_cached()  # hooks refer to the shard that holds their modules

    @guarded(repeatable=True)
    def factorise(self, group: Sequence[MatrixSpec]) -> list[Record]:
        """Commit basis and spectrum of matrices that share the root of their input moment."""
        return self._compressor.factorise(group)

    @guarded(repeatable=True)
    def truncate(self, matrix: MatrixSpec, rank: int) -> list[Record]:
        """Commit the factors of a matrix at a rank."""
        return [self._compressor.truncate(matrix, rank)]

    @guarded(repeatable=True)
    def order_neurons(self, neurons: Neurons) -> Record:
        """Commit the order in which neurons are best removed."""
        return self._pruner.order(neurons)

    @guarded(repeatable=True)
    def prune(self, neurons: Neurons, kept: int) -> list[Record]:
        """Commit what is left of the matrices of neurons of which some are kept."""
        return self._pruner.prune(neurons, kept)

    @guarded(repeatable=True)
    def adopt(self, matrix: MatrixSpec, row: MatrixResult) -> Record:
        """Commit the factors of a matrix that a finished checkpoint stores as `row` says."""
        return adopt(self._store, self._ids, self._tensors, matrix, row)

    @guarded(repeatable=True)
    def write_output(self, key: str, plan: OutputFile) -> Record:
        """Commit one file of the compressed checkpoint."""
        return write_file(self._store, self._tensors, key, plan)

    @guarded(repeatable=True)
    def upload(self, key: str, url: Url) -> None:
        """Copy a committed item to an object store."""
        transfer(self._store.place(key), url)

    @guarded(repeatable=True)
    def verify(self, place: Location, weights: Mapping[str, str], writes: Writes) -> list[Check]:
        """Check a written checkpoint, with a load in a clean process, where it writes texts.

        In an object store only its small files are at `place`; `weights` are items, by file name.
        The load gets half an item's time, so that it ends before the item does.
        """
        limit_s = min(LIMIT_S, self._config.cluster.item_timeout_s / 2)
        base = self._folder if writes == "both" and self._spec.weights is None else None
        items = {name: Url(str(self._store.place(key))) for name, key in weights.items()}
        with at_hand(place, items) as (folder, stored):
            return verify_checkpoint(folder, False, base, stored, limit_s, dozen=writes == "dozen")

    def peak_memory(self) -> int:
        """Return the peak of this worker's anonymous memory, in bytes."""
        return peak_anonymous_bytes()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._busy += time.perf_counter() - start

    def _loaded_weight(self, matrix: MatrixSpec) -> Tensor | None:
        """Return the weight on the device, if its compute dtype holds stored values exactly."""
        exact = torch.promote_types(DTYPES[self._spec.dtype], self._dtype) == self._dtype
        return self._shard.weight(matrix) if self._shard is not None and exact else None

    @property
    def _scored(self) -> ScoringShard:
        if self._scoring is None:
            raise RuntimeError("no models to score")
        return self._scoring

    @property
    def _loaded(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("no layers loaded")
        return self._shard
