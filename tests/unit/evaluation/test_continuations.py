"""What a model writes: greedy rows as one by one, sampled rows of the nucleus, ends and limits."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.models import tiny_model, tiny_tokenizer
from workers.evaluation.continuations import (
    PROMPTS,
    SAMPLE_TOKENS,
    TOKENS,
    TOP_P,
    Continuation,
    _Sample,
    continuations,
    sample,
    whole,
    written,
)
from workers.model.loading import load_model

FEW = PROMPTS[:3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    return load_model(folder, "float32", "cpu", trust_remote_code=False)


def test_greedy_rows_of_a_batch_are_those_of_each_prompt_alone(model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    together = continuations(model, tokenizer, FEW * 2, 12, greedy=3)
    for prompt, found in zip(FEW, together[:3], strict=True):
        assert continuations(model, tokenizer, [prompt], 12, greedy=1) == [found]
        assert whole(tokenizer, found) == sample(model, tokenizer, prompt, 12)
    assert [row.prompt for row in together[:3]] == [row.prompt for row in together[3:]]
    assert together[:3] != together[3:]
    assert together == continuations(model, tokenizer, FEW * 2, 12, greedy=3)


def test_a_sampled_row_is_drawn_from_the_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.17, 0.02, 0.01]).log()
    assert 0.5 + 0.3 < TOP_P < 0.5 + 0.3 + 0.17
    draw, ids = _Sample(greedy=1), torch.zeros(4001, 1, dtype=torch.int64)
    chosen = draw(ids, logits.expand(4001, -1)).argmax(-1)
    assert chosen[0] == 0
    shares = torch.bincount(chosen[1:], minlength=5) / 4000
    expected = torch.tensor([0.5, 0.3, 0.17, 0, 0]) / 0.97
    assert torch.allclose(shares, expected, atol=0.04)  # 5 standard deviations
    assert shares[3:].sum() == 0


def test_what_follows_the_end_of_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    model = load_model(tiny_model(tmp_path), "float32", "cpu", trust_remote_code=False)
    tokenizer = tiny_tokenizer()
    [before] = continuations(model, tokenizer, FEW[:1], 12, greedy=1)
    at = next(at for at in range(1, 12) if before.tokens[at] not in before.tokens[:at])
    model.generation_config.eos_token_id = [before.tokens[at], 0]
    found = continuations(model, tokenizer, FEW, 12, greedy=3)
    assert found[0] == Continuation(before.prompt, before.tokens[:at])


def test_a_model_of_few_positions_writes_less(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, max_position_embeddings=16)
    model = load_model(folder, "float32", "cpu", trust_remote_code=False)
    for found in continuations(model, tiny_tokenizer(), FEW, 12, greedy=3):
        assert len(found.prompt) <= 8
        assert len(found.tokens) <= 8


def test_the_dozen_is_written_greedily_and_sampled(model: PreTrainedModel) -> None:
    tokenizer = tiny_tokenizer()
    found = written(model, tokenizer)
    assert found["sample"] == sample(model, tokenizer, PROMPTS[0], SAMPLE_TOKENS)
    for rows in (found["greedy"], found["sampled"]):
        assert len(rows) == len(PROMPTS) == 12
        assert all(len(row["tokens"]) <= TOKENS for row in rows)
        assert [row["text"] for row in rows] == [tokenizer.decode(row["tokens"]) for row in rows]
