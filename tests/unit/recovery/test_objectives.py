"""Each loss is what its name says, and zero if both models agree."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from workers.recovery.objectives import (
    Chunk,
    Tails,
    chunks,
    divergence,
    hidden_distance,
    token_loss,
)

VOCABULARY, HIDDEN = 11, 6


def tail(hidden: Tensor) -> Tensor:
    """The head that student and base share."""
    generator = torch.Generator().manual_seed(1)
    return hidden @ torch.randn(HIDDEN, VOCABULARY, generator=generator)


TAILS = Tails(tail, tail)


@pytest.fixture
def chunk() -> Chunk:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 2, 5, HIDDEN, generator=generator)
    return Chunk(student, teacher, torch.randint(0, VOCABULARY, (2, 5), generator=generator))


def test_divergence_is_of_the_teacher_from_the_student(chunk: Chunk) -> None:
    found = divergence(TAILS, chunk)
    log_q = tail(chunk.student).log_softmax(-1)
    log_p = tail(chunk.taught).log_softmax(-1)
    expected = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found, expected)
    assert found.min() > 0


def test_the_token_loss_asks_no_teacher(chunk: Chunk) -> None:
    found = token_loss(TAILS, chunk._replace(teacher=None))
    log_q = tail(chunk.student).log_softmax(-1)
    torch.testing.assert_close(found, -log_q.gather(-1, chunk.targets[..., None])[..., 0])


def test_the_distance_is_relative(chunk: Chunk) -> None:
    double = chunk._replace(student=2 * chunk.taught)
    torch.testing.assert_close(hidden_distance(TAILS, double), torch.ones(2, 5))


def test_the_base_has_its_own_tail(chunk: Chunk) -> None:
    same = chunk._replace(student=chunk.taught)
    found = divergence(Tails(lambda hidden: 2 * tail(hidden), tail), same)
    log_q, log_p = (scale * tail(chunk.taught) for scale in (2, 1))
    expected = kl_div(
        log_q.log_softmax(-1), log_p.log_softmax(-1), reduction="none", log_target=True
    )
    torch.testing.assert_close(found, expected.sum(-1))


@pytest.mark.parametrize("loss", [divergence, hidden_distance])
def test_equal_models_have_no_loss(loss: Any, chunk: Chunk) -> None:
    same = chunk._replace(student=chunk.taught)
    torch.testing.assert_close(loss(TAILS, same), torch.zeros(2, 5))


def test_chunks_are_of_the_positions_that_a_token_follows() -> None:
    tokens, states = torch.arange(600).view(2, 300), torch.randn(2, 300, HIDDEN)
    found = list(chunks(tokens, states, states))
    assert [chunk.targets.shape[1] for chunk in found] == [128, 128, 43]
    assert torch.equal(torch.cat([chunk.targets for chunk in found], 1), tokens[:, 1:])
    assert torch.equal(torch.cat([chunk.student for chunk in found], 1), states[:, :-1])


@pytest.mark.parametrize("loss", [divergence, hidden_distance])
def test_an_objective_that_is_taught_needs_the_base(loss: Any, chunk: Chunk) -> None:
    with pytest.raises(ValueError, match="the base are missing"):
        loss(TAILS, chunk._replace(teacher=None))
