"""What recovery minimises, and its gradient at the last hidden states.

Logits exist for a few positions at a time: the gradient of each chunk is taken at once and added.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from schemas.request.recovery import Objective
from workers.model.carving import Carved

_POSITIONS = 128  # positions of a sequence whose float32 logits exist at once, of both models


class Chunk(NamedTuple):
    """Some positions of windows: the hidden states of student and teacher before the head
    (windows, positions, hidden), and the tokens that follow them (windows, positions), int64.
    """

    student: Tensor
    teacher: Tensor
    targets: Tensor


Loss = Callable[[Carved, Carved, Chunk], Tensor]
"""From student, teacher and a chunk to the loss of each position (windows, positions), float32."""


def divergence(student: Carved, teacher: Carved, chunk: Chunk) -> Tensor:
    """Return KL(teacher || student) of the next token, in nats, at temperature 1."""
    with torch.no_grad():
        log_p = teacher.tail(chunk.teacher).float().log_softmax(-1)
    log_q = student.tail(chunk.student).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def token_loss(student: Carved, _teacher: Carved, chunk: Chunk) -> Tensor:
    """Return the cross-entropy with the token that follows, in nats."""
    logits = student.tail(chunk.student).float()
    return cross_entropy(logits.transpose(1, 2), chunk.targets, reduction="none")


def hidden_distance(_student: Carved, _teacher: Carved, chunk: Chunk) -> Tensor:
    """Return the squared distance of the hidden states, relative to the teacher's."""
    target = chunk.teacher.float()
    return (chunk.student.float() - target).square().sum(-1) / target.square().sum(-1)


LOSSES: Mapping[Objective, Loss] = {
    "kl": divergence,
    "tokens": token_loss,
    "hidden": hidden_distance,
}


def chunks(tokens: Tensor, student: Tensor, teacher: Tensor) -> list[Chunk]:
    """Split windows (w, length) and their hidden states (w, length, hidden); the last position has
    no token that follows.
    """
    parts = (student[:, :-1], teacher[:, :-1], tokens[:, 1:])
    split = (torch.split(part, _POSITIONS, dim=1) for part in parts)
    return [Chunk(*each) for each in zip(*split, strict=True)]
