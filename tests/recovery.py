"""A tiny base and its truncated factors, to be trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.result.output import MatrixResult
from schemas.result.recovery import Look, RecoveryResult
from workers.model.inspection import inspect
from workers.model.layers import Decoder
from workers.recovery.job import Job
from workers.recovery.models import Student, build_student
from workers.recovery.text import Text
from workers.recovery.training import Trainer

RANK, LENGTH = 6, 16
CPU = torch.device("cpu")
RESULT = RecoveryResult(
    config=RecoveryConfig(enabled=True),
    refinement=RefinementConfig(),
    refined=(),
    windows=2,
    parameters=1,
    steps=0,
    best=0,
    looks=(Look(step=0, tokens=0, held_out=1.0, loss=None),),
    workers=1,
    seconds=1.0,
)


class Cut(NamedTuple):
    """A base, and what its matrices became: all plain at one rank, but one that is dense."""

    folder: Path
    spec: ModelSpec
    rows: Mapping[str, MatrixResult]
    factors: Mapping[str, dict[str, Tensor]]


def job_of(run_dir: Path, **known: Any) -> Job:
    """A recovery of that run directory, of which nothing else is known."""
    config = RunConfig(model="m", output=run_dir.parent / "out", run_dir=run_dir, ratio=(0.2,))
    rest: Any = dict.fromkeys(Job._fields)
    return Job(**rest | {"config": config, "identity": "same"} | known)


@contextmanager
def group(store: Path, rank: int = 0, world: int = 1) -> Iterator[None]:
    """A process group that meets in a file."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def cut(folder: Path) -> Cut:
    """Cut the matrices of a model by plain SVD."""
    spec = inspect(folder)
    weights = Decoder(folder, spec, torch.float32, CPU).part(range(spec.layers))
    rows, factors = {}, {}
    for matrix in spec.matrices:
        dense = matrix == spec.matrices[-1]
        rows[matrix.name] = MatrixResult(
            name=matrix.name,
            shape=(matrix.out_features, matrix.in_features),
            encoding="dense" if dense else "plain",
            rank=None if dense else RANK,
            parameters=matrix.size if dense else matrix.stored_parameters("plain", RANK),
            predicted_loss=0.0,
            achieved_loss=0.0,
            energy=None,
        )
        weight: Any = weights.module(matrix.name).weight
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        factors[matrix.name] = {
            "up.weight": (left * values)[:, :RANK].contiguous(),
            "down.weight": right[:RANK].contiguous(),
        }
    return Cut(folder, spec, rows, factors)


def student_of(
    cut: Cut,
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    rank_of_updates: int | None = None,
    norms: bool = False,
) -> Student:
    """The truncated model, sharded over the processes of the group."""
    decoder = Decoder(cut.folder, cut.spec, dtype, CPU)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    factors = cut.factors.__getitem__
    return build_student(
        *(decoder, cut.spec, cut.rows, factors, mesh, offload),
        rank_of_updates=rank_of_updates,
        norms=norms,
    )


def trainer_of(cut: Cut, windows: int = 8, **settings: Any) -> Trainer:
    """A trainer on seeded random tokens."""
    config = RecoveryConfig(
        **{"enabled": True, "sequence_length": LENGTH, "batch": 3, "learning_rate": 1e-2}
        | {"tokens": 8 * 3 * LENGTH, "evaluations": 4}
        | settings
    )
    student = student_of(
        cut,
        offload=bool(config.offload),
        rank_of_updates=config.rank_of_updates,
        norms=config.norms,
    )
    layers = cut.spec.layers
    decoder = Decoder(cut.folder, cut.spec, torch.float32, CPU)
    base = decoder.part(range(layers, layers)) if config.norms else None
    return Trainer(student, text_of(cut, windows), config, CPU, base)


def looks(trainer: Trainer) -> list[Look]:
    """Train; return the looks before and meanwhile."""
    return [trainer.look(), *trainer.run()]


def state(model: Trainer | Student) -> dict[str, Tensor]:
    """A copy of all that is trained."""
    return {name: p.detach().clone() for name, p in model.trained.items()}


def text_of(cut: Cut, windows: int = 8, held_out: int = 3) -> Text:
    """Seeded random tokens, and what the base makes of them."""
    generator = torch.Generator().manual_seed(0)
    size = (windows + held_out, LENGTH)
    tokens = torch.randint(0, cut.spec.vocab_size, size, generator=generator)
    base = Decoder(cut.folder, cut.spec, torch.float32, CPU).part(range(cut.spec.layers))

    @torch.no_grad()
    def taught(row: int) -> Tensor:
        hidden = base.embed(tokens[row][None])
        for index in range(cut.spec.layers):
            hidden = base.layer(index, hidden)
        return hidden[0]

    return Text(tokens, held_out, taught)
