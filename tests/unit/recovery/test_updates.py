"""Updates of low rank: of one factor after the other, and the same model once they are added."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from schemas.model.spec import MatrixSpec
from schemas.request.recovery import Order
from tests.recovery import RANK, Cut, looks, state, student_of, text_of, trainer_of
from workers.recovery.models import Student
from workers.recovery.training import Trainer, best
from workers.recovery.updates import after_training, factor_of, whole

pytestmark = pytest.mark.usefixtures("alone")


def lora(cut: Cut, **settings: Any) -> Trainer:
    return trainer_of(cut, method="svd-llm", **{"lora_rank": 2} | settings)


def changed(before: dict[str, Tensor], trainer: Trainer) -> set[str]:
    """The factors of which an update is another one now."""
    return {factor_of(n) for n, p in trainer.trained.items() if not torch.equal(before[n], p)}


def place(student: Student, matrix: MatrixSpec) -> str:
    return f"{student.path}.{matrix.layer}.{matrix.path}"


def pivoted(cut: Cut) -> Cut:
    """The same matrices in other factors: a basis of rows, and the others from it."""
    generator = torch.Generator().manual_seed(5)
    rows, factors = {}, {}
    for name, row in cut.rows.items():
        low_rank = row.rank == RANK
        rows[name] = row.model_copy(update={"encoding": "pivoted"}) if low_rank else row
        rest = row.shape[0] - RANK
        factors[name] = {
            "down.weight": cut.factors[name]["down.weight"],
            "up.weight": torch.randn(rest, RANK, generator=generator) / 8,
            "order": torch.randperm(row.shape[0], generator=generator),
        }
    return cut._replace(rows=rows, factors=factors)


@torch.no_grad()
def hidden(student: Student, cut: Cut) -> Tensor:
    found = student.model.embed(text_of(cut).windows[:2])
    for index in range(len(student.model.layers)):
        found = student.model.layer(index, found)
    return found


@pytest.mark.parametrize("encode", [Cut._replace, pivoted])
def test_added_updates_give_what_they_gave_beside_the_factors(truncated: Cut, encode: Any) -> None:
    cut = encode(truncated)
    plain, student = student_of(cut), student_of(cut, rank_of_updates=2)
    assert torch.equal(hidden(student, cut), hidden(plain, cut))  # B is zero
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for parameter in student.trained.values():
            values = cast(DTensor, parameter).to_local()
            values.copy_(torch.randn(values.shape, generator=generator) / 8)
    trained = {name: whole(parameter) for name, parameter in student.trained.items()}
    merged = {
        matrix.name: after_training(cut.factors[matrix.name], place(student, matrix), trained)
        for matrix in cut.spec.matrices
    }
    found = hidden(student, cut)
    assert not torch.allclose(found, hidden(plain, cut), rtol=0.1)
    again = hidden(student_of(cut._replace(factors=merged)), cut)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-4)


def test_factors_are_frozen_in_the_dtype_that_computes(truncated: Cut) -> None:
    student = student_of(truncated, torch.bfloat16, rank_of_updates=2)
    low_rank = [name for name, row in truncated.rows.items() if row.rank == RANK]
    assert len(student.trained) == 4 * len(low_rank)
    assert all(2 in parameter.shape for parameter in student.trained.values())
    assert {p.dtype for p in student.trained.values()} == {torch.float32}
    frozen = [p for p in student.model.module("").parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("order", "phases"),
    [
        ("up-first", [{"up"}, {"down"}]),
        ("down-first", [{"down"}, {"up"}]),
        ("one-pass", [{"up", "down"}]),
    ],
)
def test_one_factor_is_trained_after_the_other(
    truncated: Cut, order: Order, phases: list[set[str]]
) -> None:
    trainer = lora(truncated, order=order, objective="kl", patience=9)
    found, before, run = [trainer.look()], state(trainer), trainer.run()
    for number, factors in enumerate(phases):
        found += [next(run) for _ in range(4 // len(phases))]
        assert changed(before, trainer) == factors
        assert found[-1].phase == number
        before = state(trainer)
    assert list(run) == []
    assert [look.step for look in found] == [0, 2, 4, 6, 8]
    losses = [cast(float, look.loss) for look in found[1:]]
    assert losses[-1] < losses[0]


def test_the_second_phase_starts_from_the_best_state_of_the_first(truncated: Cut) -> None:
    trainer = lora(truncated, objective="kl", patience=9)
    trainer.look()
    run = trainer.run()
    assert next(run).phase == 0
    before = state(trainer)
    with torch.no_grad():
        for parameter in trainer.trained.values():
            parameter.fill_(torch.nan)
    look = next(run)
    assert (look.phase, look.held_out) == (0, None)
    assert changed(before, trainer) == set()
    assert next(run).phase == 1
    assert changed(before, trainer) == {"down"}


def test_a_rate_that_destroys_ends_both_phases(truncated: Cut) -> None:
    trainer = lora(truncated, learning_rate=1e20, patience=1)
    before = state(trainer)
    found = looks(trainer)
    assert [(look.phase, look.step) for look in found] == [(0, 0), (0, 2), (1, 4)]
    assert found[1].held_out is None
    assert best(found) == 0
    assert changed(before, trainer) == set()


def test_phases_share_the_steps(truncated: Cut) -> None:
    trainer = lora(truncated, tokens=7 * 3 * 16, evaluations=7, patience=9)
    assert [look.phase for look in looks(trainer)[1:]] == [0] * 4 + [1] * 3


def test_every_worker_begins_with_the_same_updates(truncated: Cut) -> None:
    one, other = (student_of(truncated, rank_of_updates=2).trained for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    drawn = [p.sum().item() for name, p in one.items() if "lora_A" in name]
    assert len(set(drawn)) == len(drawn)
