"""One decoder, or a dense and a compressed one side by side, scored shard by shard.

The last shard has the heads, so only a few sums leave it; no process holds a whole model.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.run.plan import LayerRange
from workers.checkpoint.fetching import resolve
from workers.checkpoint.source import Source
from workers.model.layers import Decoder
from workers.model.shard import Purpose, Shard, Step
from workers.process.devices import free_cached
from workers.storage.tensorfile import DTYPES, Entry, entries

Tail = Callable[[Tensor], Tensor]
"""From hidden states (sequences, positions, hidden) to logits of the same positions."""

_POSITIONS = 128  # positions whose float32 log-probabilities exist at once, for every model


class Rows(NamedTuple):
    """One micro-batch between two shards.

    tokens (sequences, length), int64, and hidden states (sequences, length, hidden) in the compute
    dtype, of every model; before the first shard, of the first models or none.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...]

    def named(self) -> list[Entry]:
        """Return the tensors of an item that holds these rows."""
        hidden = {str(model): states for model, states in enumerate(self.hidden)}
        return entries({"tokens": self.tokens} | hidden)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Rows":
        """Return the rows of such an item."""
        hidden = (tensors[str(model)] for model in range(len(tensors) - 1))
        return cls(tensors["tokens"], tuple(hidden))


class Score(NamedTuple):
    """Sums over the predicted tokens of one micro-batch, float64.

    `nll` is the negative log likelihood of each model in nats. `kl` is KL(first || second) in nats,
    None if there is no second model or its vocabulary has another size.
    """

    nll: tuple[float, ...]
    kl: float | None
    tokens: int


class ScoringShard:
    """Shards of one or two decoders on one device: the same part of each.

    `seconds` counts the time of each model's layers since they were loaded.
    """

    def __init__(self, sources: Sequence[Source], device: torch.device) -> None:
        self._sources = sources
        self._folders = [resolve(s.model, s.revision, s.fetched) for s in sources]
        self._device = device
        self._shards: list[Shard] = []
        self.seconds: list[float] = []

    def load(self, layers: Sequence[LayerRange]) -> None:
        """Release what is loaded, and read the weights of a range of layers of each model."""
        self._shards = []
        free_cached()
        for source, folder, part in zip(self._sources, self._folders, layers, strict=True):
            decoder = Decoder(folder, source.spec, DTYPES[source.dtype], self._device)
            self._shards.append(Shard(decoder, part.range, taps=()))
        self.seconds = [0.0] * len(self._shards)

    def forward(self, rows: Rows, step: Step, purpose: Purpose) -> Rows | Score:
        """Run a micro-batch through these layers of every model. After the last layers, score it if
        that is the purpose.
        """
        beginning = len(self._shards) - len(rows.hidden)
        entering = (*rows.hidden, *[rows.tokens] * beginning)
        leaving = tuple(
            self._timed(model, hidden.to(self._device), step)
            for model, hidden in enumerate(entering)
        )
        if purpose != "score" or not all(shard.is_last for shard in self._shards):
            return Rows(rows.tokens, tuple(hidden.cpu() for hidden in leaving))
        sizes = {source.spec.vocab_size for source in self._sources}
        return score(rows.tokens, leaving, [shard.tail for shard in self._shards], len(sizes) == 1)

    def _timed(self, model: int, hidden: Tensor, step: Step) -> Tensor:
        forward = partial(self._shards[model].forward, hidden, step, "output")
        if self._device.type == "cuda":
            if not self.seconds[model]:
                forward()  # loads kernels: else the first model's time alone
            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        leaving = forward()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[model] += time.perf_counter() - start
        return leaving


@torch.inference_mode()
def score(
    tokens: Tensor, hidden: Sequence[Tensor], tails: Sequence[Tail], comparable: bool
) -> Score:
    """Score tokens (sequences, length) by the last hidden states (sequences, length, hidden).

    Each sequence predicts its tokens 2..length. Logits are in the compute dtype and their
    log-probabilities float32, as in `workers.evaluation.perplexity`; sums over tokens are float64.
    Models are `comparable` if their vocabularies have one size.
    """
    nll, kl = [0.0] * len(tails), 0.0
    compared = len(tails) == 2 and comparable
    targets = torch.split(tokens[:, 1:].to(hidden[0].device), _POSITIONS, dim=1)
    parts = [torch.split(states[:, :-1], _POSITIONS, dim=1) for states in hidden]
    for target, *states in zip(targets, *parts, strict=True):
        logs = [
            tail(part).float().log_softmax(-1) for part, tail in zip(states, tails, strict=True)
        ]
        for model, log in enumerate(logs):
            nll[model] -= float(log.gather(-1, target[..., None]).sum(dtype=torch.float64))
        if compared:
            kl += _divergence(*logs)
    return Score(tuple(nll), kl if compared else None, tokens[:, 1:].numel())


def total(scores: Sequence[Score]) -> Score:
    """Return the sums of all micro-batches, added in their order."""
    divergences = [score.kl for score in scores if score.kl is not None]
    return Score(
        nll=tuple(map(sum, zip(*(score.nll for score in scores), strict=True))),
        kl=sum(divergences) if len(divergences) == len(scores) else None,
        tokens=sum(score.tokens for score in scores),
    )


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Sum KL(p || q) = sum p (log p - log q) over all positions; overwrites `log_q`."""
    terms = torch.sub(log_p, log_q, out=log_q).mul_(log_p.exp())
    return float(terms.sum(dtype=torch.float64))
