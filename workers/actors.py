"""The Ray actors: thin shells around `Shard`, `Compressor` and `RankAllocator`.

They return records and small rows. The hidden states of one micro-batch, on their way from one
shard to the next, are the only tensors that travel between actors; the driver sees none of them.
"""

import contextlib
import gc
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from torch import Tensor

from schemas.allocation import AllocationResult
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.identity import Identities, Record
from schemas.manifest import Check
from schemas.model import MatrixSpec, ModelSpec
from schemas.moments import Pass, Tap
from schemas.output import OutputFile
from schemas.plan import LayerRange, WorkerFacts
from workers.allocator import RankAllocator
from workers.checkpoint import resolve
from workers.compression import Compressor, moment_key
from workers.layers import Decoder
from workers.memory import peak_anonymous_bytes
from workers.output import write_file
from workers.shard import Shard, Step
from workers.store import Store
from workers.tensorfile import DTYPES, entries
from workers.verify import verify_checkpoint


@ray.remote
class LayerShard:
    """Owns a contiguous range of decoder layers on one device."""

    def __init__(self, config: RunConfig, spec: ModelSpec) -> None:
        torch.set_num_threads(config.numerics.threads)
        with contextlib.suppress(RuntimeError):  # already set in a process that Ray used before
            torch.set_num_interop_threads(1)
        self._config = config
        self._spec = spec
        self._shard: Shard | None = None

    def prepare(self) -> WorkerFacts:
        """Find checkpoint and device (here, so that an error keeps its words): what they are."""
        self._folder = resolve(self._config.model, self._config.revision)
        self._device = torch.device(_device(self._config.cluster.device))
        self._dtype = _compute_dtype(self._config, self._spec, self._device)
        cuda = self._device.type == "cuda"
        return WorkerFacts(
            host=socket.gethostname(),
            device=self._device.type,
            device_name=torch.cuda.get_device_name() if cuda else platform.machine(),
            device_memory=torch.cuda.mem_get_info()[1] if cuda else 0,
            dtype=str(self._dtype).removeprefix("torch."),
            gpu_reserved=bool(ray.get_gpu_ids()),
        )

    def identify(self, ids: Identities) -> None:
        """Say which items this run reads and writes. Raises ConfigError where it sees none."""
        if not (self._config.run_folder / "run.json").is_file():
            raise ConfigError(
                f"run_dir {self._config.run_folder} is not seen on {socket.gethostname()}; name a "
                "folder on storage that all nodes share"
            )
        self._ids = ids
        self._compressor = Compressor(self._config, self._spec, self._folder, ids, self._device)

    def load(self, layers: LayerRange, taps: Sequence[Tap]) -> None:
        """Read the weights of `layers`, and observe them at `taps`."""
        decoder = Decoder(self._folder, self._spec, self._dtype, self._device)
        last = layers.stop == self._spec.layers
        self._shard = Shard(decoder, layers.range, layers.start == 0, last, taps)

    def forward(self, hidden: Tensor, step: Step) -> Tensor | None:
        """One micro-batch through these layers; None after the last of the model."""
        output = self._loaded.forward(hidden.to(self._device), step)
        return None if self._loaded.is_last else output.cpu()

    def forward_for_gradient(self, hidden: Tensor, step: Step) -> Tensor:
        """As `forward`, keeping inputs for `backward`; the loss gradient after the last layer."""
        output = self._loaded.forward(hidden.to(self._device), step, keep_inputs=True)
        if self._loaded.is_last:
            output = self._loaded.loss_gradient(output, step, self._config.seed)
        return output.cpu()

    def backward(self, gradient: Tensor, step: Step) -> Tensor | None:
        """One gradient back through these layers; None before the first of the model."""
        below = self._loaded.backward(gradient.to(self._device), step)
        return None if self._loaded.is_first else below.cpu()

    def commit_moments(self, direction: Pass) -> list[Record]:
        """Commit the moments of one stream, and let each go."""
        store = Store(self._config.run_folder)
        records = []
        for tap, moment in self._loaded.take_moments(direction):
            tensors = {
                "trace": torch.tensor(moment.trace, dtype=torch.float64),
                "tokens": torch.tensor(moment.tokens),
            }
            if moment.matrix is not None:
                tensors["moment"] = moment.matrix
            records.append(store.commit(moment_key(self._ids, tap), entries(tensors)))
        return records

    def release(self) -> None:
        """Let the weights go, before matrices are factorised on the same device."""
        self._shard = None
        gc.collect()  # hooks refer to the shard that holds their modules
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def factorise(self, matrix: MatrixSpec) -> Record:
        """Commit basis and spectrum of a matrix."""
        return self._compressor.factorise(matrix)

    def truncate(self, matrix: MatrixSpec, rank: int) -> Record:
        """Commit the factors of a matrix at a rank."""
        return self._compressor.truncate(matrix, rank)

    def write(self, key: str, plan: OutputFile) -> Record:
        """Commit one file of the compressed checkpoint."""
        return write_file(Store(self._config.run_folder), self._folder, self._spec, key, plan)

    def verify(self, folder: str) -> list[Check]:
        """Check a written checkpoint, with a load in a clean process where it fits."""
        return verify_checkpoint(Path(folder), published=False)

    def peak_memory(self) -> int:
        """Peak of the anonymous memory of this worker, in bytes."""
        return peak_anonymous_bytes()

    @property
    def _loaded(self) -> Shard:
        if self._shard is None:
            raise RuntimeError("no layers loaded")
        return self._shard


@ray.remote(num_cpus=0)
class Allocator:
    """The one place where the losses of all matrices meet."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(1)
        self._allocator = RankAllocator(config)

    def gather(self, matrices: Sequence[MatrixSpec], identity: str) -> int:
        """Read the spectra of all matrices."""
        return self._allocator.gather(matrices, identity)

    def allocate(self, ratio: float) -> AllocationResult:
        """Ranks at one ratio."""
        return self._allocator.allocate(ratio)


def _device(asked: str) -> str:
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError(
            f"cluster.device is cuda, but a worker on {socket.gethostname()} has none (torch "
            f"{torch.__version__}); install a CUDA build of torch there, or use --device cpu"
        )
    return "cuda" if available and asked != "cpu" else "cpu"


def _compute_dtype(config: RunConfig, spec: ModelSpec, device: torch.device) -> torch.dtype:
    asked = config.numerics.dtype
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    return DTYPES[spec.dtype] if device.type == "cuda" else torch.float32
