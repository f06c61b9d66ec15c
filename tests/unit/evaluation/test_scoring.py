"""Scores of the last hidden states against logits in float64."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from schemas.run.plan import LayerRange
from tests.low_rank import make_checkpoint
from tests.models import tiny_model
from workers.checkpoint.source import Source
from workers.evaluation import scoring
from workers.evaluation.scoring import Rows, Score, ScoringShard, score, total
from workers.model.inspection import inspect_decoder
from workers.model.shard import Purpose, Step

SEQUENCES, LENGTH, VOCABULARY, LAYERS = 2, 11, 50, 3


class Head(NamedTuple):
    """The end of a model: a norm, and an output embedding (vocabulary, hidden)."""

    norm: nn.Module
    embedding: Tensor

    def tail(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.norm(hidden) @ self.embedding.T
        return logits


def random_head(seed: int, hidden: int, vocabulary: int = VOCABULARY) -> tuple[Tensor, Head]:
    """Hidden states (sequences, length, hidden) of a model, and its head."""
    generator = torch.Generator().manual_seed(seed)
    norm = nn.LayerNorm(hidden)
    embedding = torch.randn(vocabulary, hidden, generator=generator) / hidden**0.5
    return torch.randn(SEQUENCES, LENGTH, hidden, generator=generator), Head(norm, embedding)


@pytest.fixture
def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=generator)


@torch.no_grad()
def exact(hidden: Tensor, head: Head) -> Tensor:
    """Log-probabilities of the predicted tokens in float64."""
    normed = functional.layer_norm(hidden[:, :-1].double(), hidden.shape[-1:])
    logs: Tensor = (normed @ head.embedding.double().T).log_softmax(-1)
    return logs


@pytest.mark.parametrize("positions", [1, 3, 10, 128])
def test_sums_are_those_of_float64(
    tokens: Tensor, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_POSITIONS", positions)
    pairs = [random_head(1, 16), random_head(2, 24)]  # widths may differ
    states, tails = [hidden for hidden, _ in pairs], [head.tail for _, head in pairs]
    found = score(tokens, states, tails, comparable=True)
    logs = [exact(*pair) for pair in pairs]
    for nll, log in zip(found.nll, logs, strict=True):
        oracle = functional.nll_loss(log.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        assert nll == pytest.approx(float(oracle), rel=1e-6)
    oracle = functional.kl_div(logs[1], logs[0], reduction="sum", log_target=True)
    assert found.kl == pytest.approx(float(oracle), rel=1e-5)
    assert found.tokens == SEQUENCES * (LENGTH - 1)


def test_a_model_does_not_differ_from_itself(tokens: Tensor) -> None:
    hidden, head = random_head(1, 16)
    found = score(tokens, [hidden, hidden], [head.tail, head.tail], comparable=True)
    assert found.kl == 0
    assert found.nll[0] == found.nll[1]


def test_there_is_no_divergence_of_one_model_or_of_two_vocabularies(tokens: Tensor) -> None:
    hidden, head = random_head(1, 16)
    alone = score(tokens, [hidden], [head.tail], comparable=True)
    assert alone.kl is None
    other, larger = random_head(2, 16, vocabulary=VOCABULARY + 1)
    both = score(tokens, [hidden, other], [head.tail, larger.tail], comparable=False)
    assert both.kl is None
    assert both.nll[0] == alone.nll[0]


def test_scores_add_up() -> None:
    assert total([Score((1.0, 2.0), 0.5, 3), Score((4.0, 8.0), 0.25, 5)]) == ((5.0, 10.0), 0.75, 8)
    assert total([Score((1.0,), None, 3), Score((4.0,), None, 5)]) == ((5.0,), None, 8)


@pytest.mark.parametrize("tied", [False, True])
def test_stored_hidden_states_stand_for_the_layers_of_the_base(tied: bool, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", num_hidden_layers=LAYERS, tie_word_embeddings=tied)
    made = make_checkpoint(tmp_path / "small", "llama", ("plain",), num_hidden_layers=LAYERS)
    folders = base, made.folder
    sources = [Source(str(f), None, inspect_decoder(f), "F32") for f in folders]

    def run(rows: Rows, purpose: Purpose, *layers: tuple[int, int]) -> Rows | Score:
        shard = ScoringShard(sources[: len(layers)], torch.device("cpu"))
        shard.load([LayerRange(start=start, stop=stop) for start, stop in layers])
        return shard.forward(rows, Step(0, 0), purpose)

    start = Rows(torch.arange(LENGTH)[None], ())
    expected = run(start, "score", (0, LAYERS), (0, LAYERS))
    rows = run(start, "output", (0, LAYERS))
    for layers in [((0, 0), (0, 1)), ((LAYERS, LAYERS), (1, LAYERS))]:
        assert isinstance(rows, Rows)
        rows = run(rows, "score", *layers)
    assert rows == expected
