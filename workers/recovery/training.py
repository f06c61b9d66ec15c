"""One worker's part of a recovery: steps, looks at held-out windows, and the state between them."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from schemas.request.recovery import RecoveryConfig
from schemas.result.recovery import Look
from workers.model.carving import Carved
from workers.recovery.models import Student
from workers.recovery.objectives import LOSSES, Tails, chunks
from workers.recovery.text import Text
from workers.recovery.updates import factor_of, whole

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, beside its count of steps


class Trainer:
    """Trains the factors of `student` on a text, all of them or, phase by phase, some of them.

    All workers call the same methods with the same arguments; each computes its own windows of a
    batch, and gradients are averaged where layers are sharded. After every look, the trained
    parameters are the state that was best on the windows that judge: a look without progress goes
    back to it, and training goes on at half the rate. `base` has the base's own tail, if the
    student's may differ.
    """

    def __init__(
        self,
        student: Student,
        text: Text,
        config: RecoveryConfig,
        device: torch.device,
        base: Carved | None = None,
    ) -> None:
        self._student, self._text = student.model, text
        self._tails = Tails(student.model.tail, (base or student.model).tail)
        self._config, self._device = config, device
        self.windows, self.layers = len(text.trained), len(student.model.layers)
        self.steps, self._batch = config.steps(self.windows), config.windows_in_step(self.windows)
        self.trained = student.trained
        self.step, self.looks, self.refined = 0, list[Look](), list[float | None]()
        self._best = {name: p.detach().clone() for name, p in self.trained.items()}
        self._optimizer = AdamW(
            self.trained.values(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        self._phases = list(filter(None, map(self._of, config.phases)))
        self._enter(0)

    def run(self) -> Iterator[Look]:
        """Train every phase to its end, or until looks bring no progress; yield each look."""
        every = math.ceil(self.steps / self._config.evaluations)
        for phase in range(self._phase, len(self._phases)):
            if phase > self._phase:
                self._enter(phase, self.step)
            while self._left and self._since_best() < self._config.patience:
                count = min(every, self._left)
                yield self.look(sum(self._step() for _ in range(count)) / count)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a continuation needs after a look, sharded as the parameters are,
        to be saved or to be filled: the parameters, and what AdamW knows of them.
        """
        found: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            moments = self._optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), device=parameter.device)
                moments |= {kind: torch.zeros_like(parameter) for kind in _MOMENTS}
            found[name] = parameter.detach()
            found |= {f"{name}.{kind}": moments[kind] for kind in ("step", *_MOMENTS)}
        return found

    def resume(self, step: int, looks: Sequence[Look], refined: Sequence[float | None]) -> None:
        """Continue after so many steps, once `state` was filled."""
        self.step, self.looks, self.refined = step, list(looks), list(refined)
        self._keep()
        phase = looks[-1].phase
        before = [look.step for look in looks if look.phase < phase]
        self._enter(phase, before[-1] if before else 0)

    def _of(self, factors: Sequence[str]) -> list[nn.Parameter]:
        """Return what is trained of these factors, and whatever is no factor."""
        others = {"down", "up"} - set(factors)  # of a pruned matrix, what is left is in each phase
        return [p for name, p in self.trained.items() if factor_of(name) not in others]

    def _enter(self, phase: int, begun: int = 0) -> None:
        """Train what a phase does, and nothing else; it began after so many steps."""
        self._phase, self._begun = phase, begun
        for parameter in self.trained.values():
            parameter.requires_grad_(False)
        for parameter in self._phases[phase]:
            parameter.requires_grad_()

    @property
    def _steps(self) -> int:
        """The steps of this phase: phases share them equally, earlier ones have what is over."""
        each, over = divmod(self.steps, len(self._phases))
        return each + (self._phase < over)

    @property
    def _left(self) -> int:
        """The steps that are left of this phase."""
        return self._begun + self._steps - self.step

    def _step(self) -> float:
        """Take one step; return the mean loss of its windows, of all workers.

        A gradient that is not finite counts as zero, and the loss of its step as not finite.
        """
        rows = batch(self.step, self.windows, self._batch)
        loss = self._losses(self._text.trained[rows], train=True)
        norm = clip_grad_norm_(self.trained.values(), self._config.clip)
        if not whole(norm).isfinite():  # it would stay in the moments for good
            for parameter in self._phases[self._phase]:
                parameter.grad = torch.zeros_like(parameter)
            loss = math.nan
        share = share_of_rate(self.step - self._begun, self._steps, self._config.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * share * 0.5 ** self._setbacks()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        return loss

    def look(self, loss: float | None = None) -> Look:
        """Score the held-out windows; keep this state if it is the best, or go back to that."""
        with torch.no_grad():
            held_out = self._losses(self._text.judges, train=False)
        tokens = self.step * self._batch * self._text.windows.shape[1]
        look = Look(
            phase=self._phase,
            step=self.step,
            tokens=tokens,
            held_out=_finite(held_out),
            loss=_finite(loss),
        )
        self.looks.append(look)
        if best(self.looks) == len(self.looks) - 1:
            self._keep()
        else:
            self._go_back()
        return look

    @torch.no_grad()
    def _keep(self) -> None:
        """Take this state as the best, in the memory of the one before."""
        for name, parameter in self.trained.items():
            self._best[name].copy_(parameter)

    @torch.no_grad()
    def _go_back(self) -> None:
        """Go on from the best state, without the momentum that led away from it."""
        for name, parameter in self.trained.items():
            parameter.copy_(self._best[name])
        for parameter in self._phases[self._phase]:
            if moments := self._optimizer.state[parameter]:
                moments["exp_avg"].zero_()

    def _setbacks(self) -> int:
        """Return how many looks of this phase brought no progress."""
        after = (at for at, look in enumerate(self.looks) if look.step > self._begun)
        return sum(best(self.looks[: at + 1]) != at for at in after)

    def _since_best(self) -> int:
        """Return how many looks after some steps of this phase there were since the best one."""
        return sum(look.step > self._begun for look in self.looks[best(self.looks) + 1 :])

    def _losses(self, windows: Tensor, train: bool) -> float:
        """Return the mean loss a position over windows of these numbers, of all workers; with their
        gradients, if they are trained on.

        Every worker computes as many micro-batches: layers are gathered by all at once. Where
        windows are missing, it computes others with weight zero.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        each = math.ceil(len(windows) / world)
        mine = torch.arange(rank, each * world, world)
        scale = 1 / (len(windows) * (self._text.windows.shape[1] - 1))
        weights = ((mine < len(windows)) * scale).to(self._device)
        rows = windows[mine % len(windows)]
        size, sum_ = self._config.micro_batch, torch.zeros((), device=self._device)
        parts = zip(torch.split(rows, size), torch.split(weights, size), strict=True)
        for some, weight in parts:
            sum_ += self._loss(some, weight, world if train else 0)
        dist.all_reduce(sum_)
        return float(sum_)

    def _loss(self, rows: Tensor, weight: Tensor, gradients: int) -> Tensor:
        """Return the weighted loss of windows of these numbers, `weight` (rows,) of each position
        of one.

        Its gradient is taken `gradients` times, unless that is 0: averaging over so many workers
        makes a sum of it.
        """
        loss_of, total = LOSSES[self._config.objective], torch.zeros((), device=self._device)
        tokens = self._text.windows[rows].to(self._device)
        target = self._text.teach(rows).to(self._device) if self._config.taught else None
        hidden = self._hidden(tokens)
        leaf = hidden.detach().requires_grad_(bool(gradients))
        for chunk in chunks(tokens, leaf, target):
            loss = (loss_of(self._tails, chunk).sum(-1) * weight).sum()
            total += loss.detach()
            if gradients:
                (loss * gradients).backward()  # type: ignore[no-untyped-call]
        if gradients:
            hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return total

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Return the hidden states after the last layer (w, length, hidden)."""
        model = self._student
        hidden = model.embed(tokens)
        again = torch.is_grad_enabled() and self._config.checkpointing
        for index in range(len(model.layers)):
            if again:
                hidden = checkpoint(model.layer, index, hidden, use_reentrant=False)
            else:
                hidden = model.layer(index, hidden)
        return hidden


def best(looks: Sequence[Look]) -> int:
    """Return the number of the first look with the smallest loss on held-out windows; one that is
    not finite counts as infinite.
    """
    losses = [math.inf if look.held_out is None else look.held_out for look in looks]
    return losses.index(min(losses))


def _finite(loss: float | None) -> float | None:
    return None if loss is None or not math.isfinite(loss) else loss


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """Rise linearly to 1 during the warm-up share of the steps, then fall linearly towards 0."""
    warm = max(1, round(warmup * steps))
    return min((step + 1) / warm, (steps - step) / max(steps - warm, 1))


def batch(step: int, windows: int, size: int) -> Tensor:
    """Return the windows of a step (size,): all of them once in order, then again in others."""
    first, last = step * size // windows, ((step + 1) * size - 1) // windows
    orders = [_order(turn, windows) for turn in range(first, last + 1)]
    start = step * size - first * windows
    return torch.cat(orders)[start : start + size]


def _order(turn: int, windows: int) -> Tensor:
    if not turn:
        return torch.arange(windows)
    return torch.randperm(windows, generator=torch.Generator().manual_seed(turn))
