"""Text streamed through layer shards of a tiny model, and the whole model beside them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.stream.schedule import micro_batches
from schemas.model.spec import ModelSpec
from schemas.request.methods import Truncation
from schemas.run.moments import Pass, Tap, taps
from tests.prose import VOCABULARY
from workers.calibration.moments import Moment
from workers.calibration.sampling import signs_of
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step

LAYERS, WINDOWS, TOKENS, SEED = 3, 4, 12, 5

# Float32 against float64 through three layers; a wrong bias, mask or sign is an error above 1e-2.
FLOAT32 = 2e-5


class Base(NamedTuple):
    """A checkpoint of three layers, and windows of tokens."""

    folder: Path
    spec: ModelSpec
    tokens: Tensor


class Streamed(NamedTuple):
    """What shards found: moments by tap name, and hidden states after the last layer."""

    moments: dict[str, Moment]
    hidden: Tensor


def windows() -> Tensor:
    return torch.randint(VOCABULARY, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(1))


def random_error(logits: Tensor, first: int = 0) -> Tensor:
    """What is drawn for logits (windows, tokens, vocabulary) of the windows from `first` on."""
    signs = [
        2 * torch.randint(2, rows.shape, generator=signs_of(SEED, first + i), dtype=torch.int8) - 1
        for i, rows in enumerate(logits)
    ]
    roots = logits.softmax(-1).sqrt()
    signed = roots * torch.stack(signs)
    return signed - roots.square() * signed.sum(-1, keepdim=True)


def make_shards(
    base: Base,
    bounds: Sequence[int],
    found: list[Tap],
    adapted: Callable[[str], None] = lambda _: None,
) -> list[Shard]:
    """Shards of the layers between consecutive `bounds`."""
    decoder = Decoder(base.folder, base.spec, torch.float32, torch.device("cpu"))
    return [
        Shard(
            decoder,
            range(start, stop),
            taps=[tap for tap in found if tap.layer in range(start, stop)],
            adapted=adapted,
        )
        for start, stop in pairwise(bounds)
    ]


def stream(
    base: Base,
    truncation: Truncation = "fisher",
    bounds: Sequence[int] = (0, LAYERS),
    micro_batch: int = 2,
    segments: int = 2,
    adapted: Callable[[str], None] = lambda _: None,
) -> Streamed:
    """Return what shards between these bounds find in all windows."""
    found = taps(base.spec.matrices, truncation, gradients=True)
    shards = make_shards(base, bounds, found, adapted)
    batches = micro_batches(base.tokens, micro_batch, segments)
    hidden = run_shards(shards, batches)
    moments = {tap.name: m for shard in shards for tap, m in take(shard)}
    return Streamed(moments, hidden)


def run_shards(shards: Sequence[Shard], batches: Sequence[tuple[Step, Tensor]]) -> Tensor:
    """Pass all batches forward, then all forward and backward; return the last hidden states."""
    outputs = []
    for step, hidden in batches:
        for shard in shards:
            hidden = shard.forward(hidden, step)
        outputs.append(hidden)
    for step, hidden in batches:
        for shard in shards:
            hidden = shard.forward(hidden, step, "gradient")
        gradient = shards[-1].loss_gradient(hidden, step, SEED)
        for shard in reversed(shards):
            gradient = shard.backward(gradient, step)
    return torch.cat(outputs)


def take(shard: Shard) -> list[tuple[Tap, Moment]]:
    """The moments of both streams."""
    directions: tuple[Pass, ...] = ("forward", "backward")
    return [(tap, sums.mean(tap.name)) for d in directions for tap, sums in shard.take_sums(d)]


def whole_model(base: Base) -> Any:
    """The plain transformers model in float64."""
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(base.folder, dtype=torch.float64).eval()


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape
    assert float((found - exact).norm() / exact.norm()) < FLOAT32
