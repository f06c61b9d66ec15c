"""Tokens of a text and the windows that they are cut into: values by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from schemas.errors import CheckpointError, TextError
from tests.models import tiny_tokenizer
from tests.prose import prose
from workers.text import windows as text
from workers.text.sources import Split, hub_text

NONE = torch.empty(0, dtype=torch.long)
SPLITS: tuple[Split, ...] = ("calibration", "evaluation")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def test_tokens_are_those_of_one_text(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["The first.", "", "The second."]
    tokens = text.tokenize(documents, tokenizer, "\n\n")
    assert tokens.ids.tolist() == tokenizer("The first.\n\n\n\nThe second.")["input_ids"]
    assert tokens.begin.dtype == tokens.ids.dtype == torch.int64


def test_a_long_text_causes_no_warning(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(text.tokenize([prose(5000)], tokenizer, "").ids) > tokenizer.model_max_length
    assert not caplog.records


@pytest.mark.parametrize("document", ["word " * 40, "a", "x1y2z3", "line\n"])
def test_a_stream_is_read_no_further_than_needed(
    tokenizer: PreTrainedTokenizerFast, document: str
) -> None:
    read = 0

    def stream() -> Iterator[str]:
        nonlocal read
        for _ in range(3000):
            read += 1
            yield document

    tokens = text.tokenize(stream(), tokenizer, "\n\n", at_least=300).ids
    whole = text.tokenize([document] * 3000, tokenizer, "\n\n").ids
    assert len(tokens) >= 300
    assert read < 2000
    assert torch.equal(tokens[:300], whole[:300])


def test_where_a_stream_is_cut_does_not_show(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_CHARACTERS_PER_TOKEN", 0.1)  # read one document at a time
    documents = ["what i"] * 100  # "i" and "n" merge into one token
    whole = text.tokenize(documents, tokenizer, "n ").ids
    for count in range(20, 60):
        tokens = text.tokenize(documents, tokenizer, "n ", at_least=count).ids
        assert torch.equal(tokens[:count], whole[:count])


def test_a_long_document_is_read_no_further_than_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an evaluation; a calibration chooses among the windows of all that was read."""
    read, ids = list[int](), text._ids

    def spy(tokenizer: PreTrainedTokenizerFast, content: str, special: bool) -> list[int]:
        read.append(len(content))
        return ids(tokenizer, content, special)

    monkeypatch.setattr(text, "_ids", spy)
    source = tmp_path / "a.txt"
    source.write_text(prose(100_000))
    whole = text.read_text(str(source), "calibration", tokenizer, 10).tokens.ids
    for count in (10, 1500, 4000):
        read.clear()
        found = text.read_text(str(source), "evaluation", tokenizer, count).tokens.ids
        assert torch.equal(found[:count], whole[:count])
        assert max(read) < 50_000


def test_parts_are_the_text_again() -> None:
    documents = ["", "a" * 9000, prose(9000), "", "b  \n\n  " * 2000, "end"]
    parts = list(text._parts(documents, "\n\n"))
    assert "".join(parts) == "\n\n".join(documents)
    assert len(parts) > len(documents)
    assert not any(part[-1].isspace() for part in parts[:-1] if len(part) >= 4096)


def test_a_stream_that_ends_early_gives_what_it_has(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(text.tokenize(["a"], tokenizer, " ", at_least=300).ids) == 1


def test_calibration_windows_are_a_seeded_choice() -> None:
    tokens = text.Tokens(NONE, torch.arange(1, 108))
    windows = text.calibration_windows(tokens, length=10, count=4, seed=3)
    again = text.calibration_windows(tokens, length=10, count=6, seed=3)
    assert windows.shape == (4, 10)
    assert torch.equal(windows, again[:4])
    assert not torch.equal(windows, text.calibration_windows(tokens, 10, 4, seed=4))
    assert len({int(window[0]) for window in again}) == 6
    for window in again:
        assert int(window[0]) % 10 == 1
        assert torch.equal(window, torch.arange(10) + window[0])


def test_evaluation_windows_are_the_first() -> None:
    tokens = text.Tokens(NONE, torch.arange(47))
    assert torch.equal(text.evaluation_windows(tokens, 10), torch.arange(40).view(4, 10))
    assert torch.equal(text.evaluation_windows(tokens, 10, 2), torch.arange(20).view(2, 10))


def test_every_window_begins_as_a_text_does(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With a BOS, if the tokenizer adds one; what it adds to the end is left out."""
    tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    bare = text.tokenize([prose(500)], tokenizer, "")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ends = [("<s>", tokenizer.bos_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {tokenizer.eos_token}", special_tokens=ends
    )
    tokens = text.tokenize([prose(500)], tokenizer, "")
    assert torch.equal(tokens.ids, bare.ids)
    assert (bare.begin.tolist(), tokens.begin.tolist()) == ([], [tokenizer.bos_token_id])
    windows = text.evaluation_windows(tokens, 11)
    assert set(windows[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert torch.equal(windows[:, 1:], text.evaluation_windows(bare, 10))
    chosen = text.calibration_windows(tokens, 11, 3, seed=0)
    assert torch.equal(chosen[:, 1:], text.calibration_windows(bare, 10, 3, seed=0))
    with pytest.raises(TextError, match=r"windows of 1 tokens are too short: .* with 1 of its own"):
        tokens.windows(1)


def test_too_short_a_text_says_by_how_much() -> None:
    with pytest.raises(
        TextError, match=r"47 tokens are 4 windows of 10, but 5 .* lower the samples"
    ):
        text.calibration_windows(text.Tokens(NONE, torch.arange(47)), length=10, count=5, seed=0)
    with pytest.raises(TextError, match="9 tokens are less than one window of 10"):
        text.evaluation_windows(text.Tokens(NONE, torch.arange(9)), length=10)


def test_tokenizers_must_agree(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = tmp_path / "a.txt"
    source.write_text("The start is the same. <new> is not.")
    same = text.shared_tokens(str(source), {"base": tokenizer, "ours": tokenizer})
    assert torch.equal(same.ids, text.tokenize([source.read_text()], tokenizer, "").ids)
    tokenizer.save_pretrained(tmp_path)
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    other.add_tokens(["<new>"])
    at = tokenizer("The start is the same.")["input_ids"]
    with pytest.raises(
        CheckpointError, match=rf"base and ours .* from token ({len(at)}|{len(at) + 1}) on"
    ):
        text.shared_tokens(str(source), {"base": tokenizer, "ours": other})


def test_separators() -> None:
    found = [hub_text(name).separator for name in ("wikitext2", "c4", "a.jsonl")]
    assert found == ["\n\n", " ", "\n\n"]
