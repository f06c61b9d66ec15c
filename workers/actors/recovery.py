"""What every worker of a Ray Train job does: it builds both models, trains, and commits factors."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh

from schemas.errors import RunError
from schemas.request.config import RunConfig
from schemas.result.recovery import Look, RecoveryResult, Refined
from schemas.run.identity import fingerprint
from schemas.run.plan import SAVED_BYTES
from workers.actors.probe import own_device
from workers.adoption import tensors_of
from workers.checkpoint.fetching import resolve
from workers.evaluation.scoring import Rows
from workers.model.layers import Decoder
from workers.process.devices import free_cached, set_threads
from workers.process.failures import explained
from workers.process.logs import set_up_logging
from workers.process.memory import free_bytes, peak_anonymous_bytes
from workers.recovery.blocks import Refinement
from workers.recovery.job import Job, recovery_of
from workers.recovery.models import build_student, build_teacher
from workers.recovery.refined import RefinedLayers
from workers.recovery.text import Text
from workers.recovery.training import Trainer, best
from workers.recovery.updates import after_training, whole
from workers.storage.keys import (
    boundary_key,
    factors_key,
    recovered_key,
    recovered_norms_key,
    recovered_text_key,
)
from workers.storage.store import Store
from workers.storage.tensorfile import DTYPES, entries

_PROGRESS = "progress.json"


def recover(asked: dict[str, Any]) -> None:
    """Train as `asked["job"]` says, and commit the factors of every matrix and the result.

    What happens goes to the queue `asked["reports"]`. Continues from the last checkpoint, if there
    is one, or after the layers that are refined already; trains nothing if the result is there.
    """
    job: Job = asked["job"]
    config, settings = job.config, job.config.recovery
    set_up_logging()
    set_threads(config.numerics.threads)
    start = time.monotonic()
    for left in Path(tempfile.gettempdir()).glob(f"{temporary(job)}*"):
        shutil.rmtree(left, ignore_errors=True)  # by a worker that was killed; none is saving yet
    ended = torch.tensor(int(recovery_of(Store(config.run_folder), job.identity) is not None))
    dist.all_reduce(ended, dist.ReduceOp.MIN)  # as all workers see it
    if ended:  # only its last state was not uploaded
        return
    if settings.enabled:
        _require_room(job)
    trainer, refinement, norms = _models(job)
    layers = RefinedLayers(job, trainer.trained)
    spent = _restore(trainer) or layers.seconds
    first = dist.get_rank() == 0

    def report(event: Look | Refined) -> None:
        if first:
            asked["reports"].put(event)

    def seconds() -> float:
        return round(spent + time.monotonic() - start, 3)

    if trainer.looks:
        report(trainer.looks[-1])
    for event in train(config, trainer, refinement, layers.restore):
        report(event)
        if isinstance(event, Refined):
            layers.commit(event.layer, event.left, seconds())
        elif event.step:
            _save(job, trainer, seconds())
    _commit(job, trainer.trained, norms)
    if first:
        result = RecoveryResult(
            config=settings,
            refinement=config.refinement,
            refined=tuple(trainer.refined),
            windows=trainer.windows,
            parameters=sum(p.numel() for p in trainer.trained.values()),
            steps=trainer.steps if settings.enabled else 0,
            best=best(trainer.looks),
            looks=tuple(trainer.looks),
            workers=dist.get_world_size(),
            seconds=seconds(),
            peak_bytes=peak_anonymous_bytes(),
        )
        key = recovered_key(job.identity, None)
        Store(config.run_folder).commit(key, [], result.model_dump(mode="json"))


def train(
    config: RunConfig,
    trainer: Trainer,
    refinement: Callable[[], Refinement],
    restore: Callable[[], list[float | None]] = list,
) -> Iterator[Look | Refined]:
    """Look, refine the layers that are not refined yet, look again, and take the steps that are
    left. A `refinement` holds the layers of the base, so it is there while it is needed; `restore`
    fills the layers that were refined before, and returns the error that was left of each.
    """
    if not trainer.looks:
        yield trainer.look()
        free_cached()  # FSDP begins anew with streams of its own, and cannot use what is cached
    if config.refinement.enabled and len(trainer.looks) == 1:
        trainer.refined = restore()
        if len(trainer.refined) < trainer.layers:
            for left in refinement().run(done=len(trainer.refined)):
                trainer.refined.append(left)
                yield Refined(layer=len(trainer.refined) - 1, left=left)
        free_cached()
        yield trainer.look()
    if config.recovery.enabled:
        yield from trainer.run()


def _models(job: Job) -> tuple[Trainer, Callable[[], Refinement], dict[str, str]]:
    """Return what trains, what makes a refinement, and the names of norms' weights that are
    trained, by those in files.
    """
    config, store = job.config, Store(job.config.run_folder)
    folder = resolve(config.model, config.revision, config.fetched)
    device = own_device(config.cluster.device)
    if device.type == "cuda":  # Ray Train shows all of its node's, and other threads use the first
        device = get_device()
    dtype = getattr(torch, job.dtype)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    tensors = tensors_of(config, folder, job.spec, device)
    decoder = Decoder(folder, job.spec, dtype, device, tensors)

    def factors(name: str) -> dict[str, Tensor]:
        rank = job.ranks[name]
        if rank is None:
            raise ValueError(f"{name} is not cut")
        stored = store.load(factors_key(job.ids, name, rank, job.rows[name].is_pruned)).tensors
        return {name: tensor.to(device) for name, tensor in stored.items()}

    asked = config.recovery
    student = build_student(
        *(decoder, job.spec, job.rows, factors, mesh, job.offload),
        rank_of_updates=asked.rank_of_updates,
        norms=asked.norms,
    )
    text, base = _text(job, store), Decoder(folder, job.spec, dtype, device)

    def refinement() -> Refinement:
        teacher = build_teacher(base, job.spec, mesh)
        return Refinement(student, teacher, text, config.refinement, device)

    tail = None
    if job.own_norms and asked.taught:
        tail = base.part(range(job.spec.layers, job.spec.layers))
    return Trainer(student, text, asked, device, tail), refinement, student.norms


def _text(job: Job, store: Store) -> Text:
    tokens = store.load(recovered_text_key(job.identity)).tensors
    judges, windows = tokens["held_out"].long(), tokens["windows"].long()

    def taught(row: int) -> Tensor:
        key = boundary_key(job.taught, job.spec.layers, "hidden", row)
        return Rows.of(store.load(key).tensors).hidden[0][0]

    return Text(torch.cat((judges, windows)), len(judges), taught)


def temporary(job: Job) -> str:
    """Return how the names of temporary folders begin: they are of one run directory, as the same
    request in another one has the same identity.
    """
    return f"svdllm-recovery-{fingerprint([str(job.config.run_folder), job.identity])}-"


def _require_room(job: Job) -> None:
    """Raises RunError if the temporary folder has no room for a state of this node's workers."""
    folder, workers = Path(tempfile.gettempdir()), ray.train.get_context().get_local_world_size()
    size = SAVED_BYTES * job.parameters * workers // dist.get_world_size()
    free = free_bytes(folder)
    if free is not None and size > free:
        raise RunError(
            f"{folder}: a state of training takes {size:,} bytes there until it is uploaded, "
            f"{free:,} are free; make room, or name another folder as TMPDIR where Ray starts"
        )


def _save(job: Job, trainer: Trainer, seconds: float) -> None:
    """Give Ray Train a checkpoint, which it uploads while training goes on."""
    with _explained("a state to go on from"):
        folder = Path(tempfile.mkdtemp(prefix=temporary(job)))
        save(trainer.state(), checkpoint_id=folder)
    progress = {
        "step": trainer.step,
        "refined": trainer.refined,
        "looks": [look.model_dump() for look in trainer.looks],
        "seconds": seconds,
    }
    if dist.get_rank() == 0:
        (folder / _PROGRESS).write_text(json.dumps(progress))
    ray.train.report(
        {"step": trainer.step},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Explain failures of the temporary folder, where `what` is, in any of the workers."""
    try:
        yield
    except (CheckpointException, OSError) as error:
        failures: dict[int, Any] = getattr(error, "failures", {})
        for cause in [cause for cause, _ in failures.values()] or [error]:
            if found := explained(cause, what, Path(tempfile.gettempdir())):
                raise found from error
        raise


def _restore(trainer: Trainer) -> float:
    """Continue from the last checkpoint, if any; return the seconds that went before it.

    Raises StorageError if storage fails, RunError if the checkpoint is damaged.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0.0
    try:
        with _explained("the state to go on from"), checkpoint.as_directory() as folder:
            load(trainer.state(), checkpoint_id=folder)
            progress: dict[str, Any] = json.loads((Path(folder) / _PROGRESS).read_text())
    except (CheckpointException, OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # of a store that does not answer: the state may be whole
        reason = str(error).strip().rpartition("\n")[2]  # else it has the traces of all workers
        raise RunError(
            f"{checkpoint.path}: the saved state cannot be read ({reason}); remove it, and "
            "start the same command again: what is not refined is trained anew"
        ) from error
    looks = [Look(**look) for look in progress["looks"]]
    trainer.resume(progress["step"], looks, progress["refined"])
    return float(progress["seconds"])


def _commit(job: Job, trained: Mapping[str, Tensor], norms: Mapping[str, str]) -> None:
    """Commit the factors of every cut matrix as the checkpoint stores them, and the weights of
    norms if they were to be trained, by the first worker; in place of those of an attempt that was
    killed while it committed, which may have trained to others.
    """
    store, first = Store(job.config.run_folder), dist.get_rank() == 0

    def commit(key: str, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        store.forget(key)
        store.commit(key, entries(tensors), facts)

    for matrix in job.spec.matrices:
        if (rank := job.ranks[matrix.name]) is None:
            continue
        place = f"{job.spec.path}.{matrix.layer}.{matrix.path}"
        mine = {name: whole(p) for name, p in trained.items() if name.startswith(f"{place}.")}
        if first:
            result = job.rows[matrix.name]
            key = factors_key(job.ids, matrix.name, rank, result.is_pruned)
            stored, row = store.load(key).tensors, result.model_dump(mode="json")
            tensors = after_training(stored, place, mine)
            commit(recovered_key(job.identity, matrix.name), tensors, row)
    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in job.spec.tensors}
    weights = {file: whole(trained[name]).to(dtypes[file]) for file, name in norms.items()}
    if first and job.config.recovery.norms:
        commit(recovered_norms_key(job.identity), weights, {"names": [*weights]})
    dist.barrier()
