"""What recovery minimises, and its gradient at the last hidden states.

Logits exist for a few positions at a time: the gradient of each chunk is taken at once and added.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from schemas.request.recovery import Objective

_POSITIONS = 128  # positions of a sequence whose float32 logits exist at once, of both models


class Chunk(NamedTuple):
    """Some positions of windows: the student's hidden states before the head (windows, positions,
    hidden), the base's, if the objective needs them, and the tokens that follow (windows,
    positions), int64.
    """

    student: Tensor
    teacher: Tensor | None
    targets: Tensor

    @property
    def taught(self) -> Tensor:
        """The base's hidden states. Raises ValueError if nobody asked for them."""
        if self.teacher is None:
            raise ValueError("the hidden states of the base are missing")
        return self.teacher


Tail = Callable[[Tensor], Tensor]
"""From the last hidden states (windows, positions, hidden) to logits."""


class Tails(NamedTuple):
    """Those of student and base: one and the same if no norm is trained."""

    student: Tail
    teacher: Tail


Loss = Callable[[Tails, Chunk], Tensor]
"""From the tails and a chunk to the loss of each position (windows, positions), float32."""


def divergence(tails: Tails, chunk: Chunk) -> Tensor:
    """Return KL(base || student) of the next token, in nats, at temperature 1."""
    with torch.no_grad():
        log_p = tails.teacher(chunk.taught).float().log_softmax(-1)
    log_q = tails.student(chunk.student).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def token_loss(tails: Tails, chunk: Chunk) -> Tensor:
    """Return the cross-entropy with the token that follows, in nats."""
    logits = tails.student(chunk.student).float()
    return cross_entropy(logits.transpose(1, 2), chunk.targets, reduction="none")


def hidden_distance(_tails: Tails, chunk: Chunk) -> Tensor:
    """Return the squared distance of the hidden states, relative to the base's."""
    return relative_distance(chunk.student, chunk.taught)


def relative_distance(found: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of hidden states from a target, over the target's own square, of
    each position: the few of large norm at the start of a text do not outweigh the others.
    """
    wide = target.float()
    return (found.float() - wide).square().sum(-1) / wide.square().sum(-1)


LOSSES: Mapping[Objective, Loss] = {
    "kl": divergence,
    "tokens": token_loss,
    "hidden": hidden_distance,
}


def chunks(tokens: Tensor, student: Tensor, teacher: Tensor | None) -> Iterator[Chunk]:
    """Split windows (w, length) and their hidden states (w, length, hidden); the last position has
    no token that follows.
    """
    last = tokens.shape[1] - 1
    for start in range(0, last, _POSITIONS):
        part = slice(start, min(start + _POSITIONS, last))
        target = None if teacher is None else teacher[:, part]
        following = tokens[:, part.start + 1 : part.stop + 1]
        yield Chunk(student[:, part], target, following)
