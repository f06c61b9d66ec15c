"""A layer that is trained alone comes nearer to what the base's layer gives, or stays."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from schemas.request.config import RunConfig
from schemas.request.recovery import RefinementConfig
from schemas.result.recovery import Look, Refined
from tests.recovery import CPU, Cut, job_of, state, student_of, text_of, trainer_of
from workers.actors.recovery import train
from workers.model.layers import Decoder
from workers.recovery.blocks import Refinement
from workers.recovery.models import Student, build_teacher
from workers.recovery.refined import RefinedLayers
from workers.recovery.training import best

pytestmark = pytest.mark.usefixtures("alone")


def refinement_of(cut: Cut, rate: float = 3e-3) -> tuple[Student, Refinement]:
    student = student_of(cut)
    decoder = Decoder(cut.folder, cut.spec, torch.float32, CPU)
    teacher = build_teacher(decoder, cut.spec, init_device_mesh("cpu", (1,)))
    config = RefinementConfig(enabled=True, windows=16, passes=3, learning_rate=rate)
    text = text_of(cut, windows=16, held_out=4)
    return student, Refinement(student, teacher, text, config, CPU)


def test_every_layer_has_less_error_left(truncated: Cut) -> None:
    _, refinement = refinement_of(truncated)
    left = list(refinement.run())
    assert len(left) == truncated.spec.layers
    assert all(share and 0 < share < 1 for share in left)


def test_a_rate_that_destroys_changes_nothing(truncated: Cut) -> None:
    student, refinement = refinement_of(truncated, rate=30.0)
    before = state(student)
    left = list(refinement.run())
    assert 1.0 in left
    assert all(share and share <= 1 for share in left)
    destroyed = tuple(f"{student.path}.{layer}." for layer in range(2) if left[layer] == 1.0)
    assert all(
        torch.equal(before[name], p)
        for name, p in student.trained.items()
        if name.startswith(destroyed)
    )


def test_what_is_continued_ends_as_what_was_not_stopped(truncated: Cut, tmp_path: Path) -> None:
    whole, refinement = refinement_of(truncated)
    left = list(refinement.run())
    stopped, first = refinement_of(truncated)
    assert next(first.run()) == left[0]
    job = job_of(tmp_path / "run", spec=truncated.spec)
    none = RefinedLayers(job, stopped.trained)
    assert (none.restore(), none.seconds) == ([], 0.0)
    none.commit(0, left[0], seconds=2.5)
    again, second = refinement_of(truncated)
    layers = RefinedLayers(job, again.trained)
    assert (layers.restore(), layers.seconds) == (left[:1], 2.5)
    assert list(second.run(done=1)) == left[1:]
    assert all(torch.equal(p, whole.trained[name]) for name, p in again.trained.items())


def test_what_makes_the_model_worse_is_undone(truncated: Cut, tmp_path: Path) -> None:
    asked = RefinementConfig(enabled=True)
    config = RunConfig(model="m", output=tmp_path, ratio=(0.4,), refinement=asked)
    trainer = trainer_of(truncated)
    before = state(trainer)
    _, refinement = refinement_of(truncated)

    @torch.no_grad()
    def destroy(done: int) -> Iterator[float]:
        for parameter in trainer.trained.values():
            parameter.neg_()
        yield 1.0

    with patch.object(refinement, "run", destroy):
        list(train(config, trainer, lambda: refinement))
    assert best(trainer.looks) == 0
    assert all(torch.equal(before[name], p) for name, p in trainer.trained.items())


def test_the_base_is_there_while_layers_are_refined(truncated: Cut, tmp_path: Path) -> None:
    config = RunConfig(
        model="m", output=tmp_path, ratio=(0.4,), refinement=RefinementConfig(enabled=True)
    )
    trainer, teachers = trainer_of(truncated), []

    def refinement() -> Refinement:
        _, made = refinement_of(truncated)
        teachers.append(weakref.ref(made._teacher.layers[0]))
        return made

    events = list(train(config, trainer, refinement))
    assert [type(event) for event in events] == [Look, *[Refined] * truncated.spec.layers, Look]
    assert [teacher() for teacher in teachers] == [None]
    assert not list(train(config, trainer, refinement))  # as if it went on after a kill
    assert len(teachers) == 1
