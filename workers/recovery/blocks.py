"""Block refinement: the factors of each layer trained alone, from the first layer to the last.

A layer's input is what the student's earlier layers, already refined, make of the text; its target
is what the base's layer gives in the base's own stream (AA-SVD: arXiv 2604.02119). No gradient goes
beyond a layer, so it needs little memory and few tokens.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from schemas.request.recovery import RefinementConfig
from workers.model.carving import Carved
from workers.recovery.models import Student
from workers.recovery.objectives import relative_distance
from workers.recovery.text import Text


class Stream(NamedTuple):
    """Hidden states (1, length, hidden) of student and teacher for each window of this worker;
    `weights` is zero for those that only keep workers in step.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    weights: list[float]


class Refinement:
    """Refines the layers of `student` towards `teacher` on the first windows of a text.

    All workers call the same methods; each computes its own windows, and gradients are averaged
    where layers are sharded. A layer keeps the state that was best on the windows that judge.
    """

    def __init__(
        self,
        student: Student,
        teacher: Carved,
        text: Text,
        config: RefinementConfig,
        device: torch.device,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._config, self._device = config, device
        self._windows = text.windows[text.trained[: config.windows]]
        self._held_out = text.windows[text.judges]

    def run(self, done: int = 0) -> Iterator[float | None]:
        """Refine the layers after the first `done`; yield, for each, the held-out error that is
        left as a share of what it was; None if nothing of it is cut.
        """
        text, held_out = self._begin(self._windows), self._begin(self._held_out)
        for index in range(len(self._teacher.layers)):
            for stream in (text, held_out):
                _pass(self._teacher, index, stream.teacher)  # ahead: these are the targets
            if index >= done:
                yield self._refine(index, text, held_out)
            for stream in (text, held_out):
                _pass(self._student.model, index, stream.student)

    @torch.no_grad()
    def _begin(self, windows: Tensor) -> Stream:
        """Embed this worker's windows: as many on every worker, of layers gathered by all."""
        rank, world = dist.get_rank(), dist.get_world_size()
        rows = [rank + world * turn for turn in range(math.ceil(len(windows) / world))]
        mine = [windows[row % len(windows)][None].to(self._device) for row in rows]
        return Stream(
            [self._student.model.embed(tokens) for tokens in mine],
            [self._teacher.embed(tokens) for tokens in mine],
            [float(row < len(windows)) for row in rows],
        )

    def _refine(self, index: int, text: Stream, held_out: Stream) -> float | None:
        parameters = self._student.of_layer(index)
        if not parameters:
            return None
        before = smallest = self._error(index, held_out)
        if not math.isfinite(before):
            return 1.0
        best = [p.detach().clone() for p in parameters]
        optimizer = AdamW(parameters, lr=self._config.learning_rate, weight_decay=0.0, fused=True)
        for _ in range(self._config.passes):
            for first in range(0, len(self._windows), self._config.batch):
                for at, weight in self._turns(first):
                    found = self._student.model.layer(index, text.student[at])
                    loss = relative_distance(found, text.teacher[at]).mean() * weight
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
            error = self._error(index, held_out)
            if error < smallest:
                smallest, best = error, [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, state in zip(parameters, best, strict=True):
                parameter.copy_(state)
        return smallest / before if before else 1.0

    def _turns(self, first: int) -> list[tuple[int, float]]:
        """Return which of its windows this worker takes of the batch that begins with window
        `first`, and their weights in a mean over all workers: as many on every worker, of weight
        zero if the batch has no more for it.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        last = min(first + self._config.batch, len(self._windows))
        mine = [row // world for row in range(first, last) if row % world == rank]
        weight = world / (last - first)
        missing = math.ceil((last - first) / world) - len(mine)
        return [(at, weight) for at in mine] + [(0, 0.0)] * missing

    @torch.no_grad()
    def _error(self, index: int, stream: Stream) -> float:
        """Return the mean relative error over all windows of a stream, of all workers."""
        sums = torch.zeros(2, device=self._device)
        for hidden, target, weight in zip(*stream, strict=True):
            found = self._student.model.layer(index, hidden)
            error = relative_distance(found, target).mean()
            sums += torch.stack((error * weight, torch.full_like(error, weight)))
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])


@torch.no_grad()
def _pass(model: Carved, index: int, states: list[Tensor]) -> None:
    """Replace hidden states before a layer by those after it, one after the other."""
    for at, hidden in enumerate(states):
        states[at] = model.layer(index, hidden)
