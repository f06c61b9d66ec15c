"""Documents, tokens and windows: values by hand, and every message a user can run into."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from schemas.errors import CheckpointError, TextError
from tests.models import tiny_tokenizer
from tests.prose import prose
from workers.text import windows as text
from workers.text.documents import iter_documents
from workers.text.rows import Document
from workers.text.sources import Split, hub_text

SPLITS: tuple[Split, ...] = ("calibration", "evaluation")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def read(path: Path) -> list[Document]:
    return list(iter_documents(str(path), "calibration"))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", "utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8-sig")
    assert read(tmp_path / "a.txt") == ["one"]
    assert read(tmp_path / "a.jsonl") == ["one", "two"]


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_local_files_give_the_same_documents(tmp_path: Path) -> None:
    documents = ["one\r\ntwo", "drei – ä", "", "x" * 5000]
    lines = "\n".join(json.dumps({"text": d, "id": 1}) for d in documents) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 4], "text": documents})
    (tmp_path / "a.txt").write_bytes(documents[0].encode())
    assert read(tmp_path / "a.jsonl") == documents
    assert read(tmp_path / "a.parquet") == documents
    assert read(tmp_path / "a.txt") == [documents[0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo\nthr\xffee\n", r"a\.txt, line 3: not UTF-8.*convert"),
        ("a.txt", b" \n\n", r"a\.txt' \(calibration\): empty"),
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', r"line 2: not JSON in UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2: not JSON.*one object a line"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2: no string under 'text'"),
        ("a.jsonl", b'["a"]\n', r"line 1: no string under 'text'"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: no string under 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: not valid Unicode"),
        ("a.jsonl", b"\n", "empty"),
        ("a.parquet", b"PAR1 is not enough", r"a\.parquet: cannot be read"),
        ("a.csv", b"text\n", r"not a file of a known kind \(\.txt, \.jsonl, \.parquet\)"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        read(tmp_path / name)


def test_a_bad_parquet_row_or_column_is_named(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        2, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xff")
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"body": ["a"]}, r"no column 'text' \(found body\); rename"),
        ({"text": [1]}, r"row 1: no string under 'text'"),
        ({"text": broken}, r"row 2: not UTF-8"),
        ({"text": pa.array([], pa.string())}, "empty"),
    ]
    for columns, message in cases:
        with pytest.raises(TextError, match=message):
            read(write_parquet(tmp_path / "a.parquet", columns))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.txt", r"file\.txt: not found"),
        ("~/no-such-file.jsonl", r"no-such-file\.jsonl: not found"),
        ("wikitext-2", r"not a known data set \(wikitext2, c4, .*\) and not a hub id"),
        ("a/b/c", "not a hub id"),
    ],
)
def test_a_source_that_is_nothing_is_named(source: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        list(iter_documents(source, "calibration"))


class Hub:
    """A stand-in for `datasets.load_dataset` that remembers what was asked of it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.calls, self.read = rows, list[Any](), 0

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        self.calls.append((args, kwargs))
        for row in self.rows:
            self.read += 1
            yield row


@pytest.mark.parametrize(
    ("source", "split", "args", "kwargs"),
    [
        (
            "ptb",
            "evaluation",
            ("ptb-text-only/ptb_text_only", None),
            {"data_files": {"test": "penn_treebank/test/0000.parquet"}},
        ),
        ("slimpajama", "calibration", ("DKYoon/SlimPajama-6B", None), {"split": "train"}),
        ("ultrachat", "evaluation", ("HuggingFaceH4/ultrachat_200k", None), {"split": "test_sft"}),
        ("org/name@v1#body", "evaluation", ("org/name", None), {"revision": "v1"}),
        (
            "wikitext2",
            "evaluation",
            ("Salesforce/wikitext", "wikitext-2-raw-v1"),
            {"split": "test", "data_files": None},
        ),
        (
            "c4",
            "calibration",
            ("allenai/c4", None),
            {"split": "train", "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}},
        ),
        ("org/name", "evaluation", ("org/name", None), {"split": "test", "revision": None}),
    ],
)
def test_a_hub_dataset_is_asked_for_exactly(
    monkeypatch: pytest.MonkeyPatch, source: str, split: Any, args: Any, kwargs: Any
) -> None:
    rows = [dict.fromkeys(("text", "sentence", "messages", "body"), value) for value in "ab"]
    hub = Hub(rows)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert list(iter_documents(source, split)) == ["a", "b"]
    ((asked, options),) = hub.calls
    assert asked == args
    assert options["streaming"] is True
    assert options.items() >= kwargs.items()
    if not source.startswith(("org/name", "ptb")):
        assert len(options["revision"]) == 40


@pytest.mark.parametrize("source", ["fineweb-edu", "codeparrot"])
def test_one_split_is_parted_in_two(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", Hub([{"text": f"{i}", "content": f"{i}"} for i in range(1500)])
    )
    kept, held_back = (list(iter_documents(source, split)) for split in SPLITS)
    assert (held_back[0], held_back[-1]) == ("0", "999")
    assert (kept[0], kept[-1]) == ("1000", "1499")


def test_c4_is_evaluated_on_its_first_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub([{"text": "a"}] * 2000)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert len(list(iter_documents("c4", "evaluation"))) == hub.read == 1100


def test_a_hub_row_without_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub([{"text": "a"}, {"content": "b"}]))
    with pytest.raises(TextError, match=r"org/name \(default, train\), row 2: no string"):
        list(iter_documents("org/name", "calibration"))


@pytest.mark.parametrize("source", ["wikitext2", "c4", "org/name"])
def test_an_unreachable_hub_is_said_so(source: str) -> None:
    with pytest.raises(TextError, match=r"hub dataset .*/.*ConnectionError.*local \.txt"):
        list(iter_documents(source, "evaluation"))


def test_tokens_are_those_of_one_text(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = ["The first.", "", "The second."]
    tokens = text.tokenize(documents, tokenizer, "\n\n")
    assert tokens.tolist() == tokenizer("The first.\n\n\n\nThe second.")["input_ids"]
    assert tokens.dtype == torch.int64


def test_a_long_text_causes_no_warning(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(text.tokenize([prose(5000)], tokenizer, "")) > tokenizer.model_max_length
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

    tokens = text.tokenize(stream(), tokenizer, "\n\n", at_least=300)
    whole = text.tokenize([document] * 3000, tokenizer, "\n\n")
    assert len(tokens) >= 300
    assert read < 2000
    assert torch.equal(tokens[:300], whole[:300])


def test_where_a_stream_is_cut_does_not_show(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_CHARACTERS_PER_TOKEN", 0.1)  # read one document at a time
    documents = ["what i"] * 100  # "i" and "n" merge into one token
    whole = text.tokenize(documents, tokenizer, "n ")
    for count in range(20, 60):
        tokens = text.tokenize(documents, tokenizer, "n ", at_least=count)
        assert torch.equal(tokens[:count], whole[:count])


def test_a_long_document_is_read_no_further_than_needed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an evaluation; a calibration chooses among the windows of all that was read."""
    read, ids = list[int](), text._ids

    def spy(tokenizer: PreTrainedTokenizerFast, content: str) -> list[int]:
        read.append(len(content))
        return ids(tokenizer, content)

    monkeypatch.setattr(text, "_ids", spy)
    source = tmp_path / "a.txt"
    source.write_text(prose(100_000))
    whole = text.read_text(str(source), "calibration", tokenizer, 10).tokens
    for count in (10, 1500, 4000):
        read.clear()
        found = text.read_text(str(source), "evaluation", tokenizer, count).tokens
        assert torch.equal(found[:count], whole[:count])
        assert max(read) < 50_000


def test_parts_are_the_text_again() -> None:
    documents = ["", "a" * 9000, prose(9000), "", "b  \n\n  " * 2000, "end"]
    parts = list(text._parts(documents, "\n\n"))
    assert "".join(parts) == "\n\n".join(documents)
    assert len(parts) > len(documents)
    assert not any(part[-1].isspace() for part in parts[:-1] if len(part) >= 4096)


def test_a_stream_that_ends_early_gives_what_it_has(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(text.tokenize(["a"], tokenizer, " ", at_least=300)) == 1


def test_calibration_windows_are_a_seeded_choice() -> None:
    tokens = torch.arange(1, 108)
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
    tokens = torch.arange(47)
    assert torch.equal(text.evaluation_windows(tokens, 10), tokens[:40].view(4, 10))
    assert torch.equal(text.evaluation_windows(tokens, 10, 2), tokens[:20].view(2, 10))


def test_too_short_a_text_says_by_how_much() -> None:
    with pytest.raises(
        TextError, match=r"47 tokens are 4 windows of 10, but 5 .* lower the samples"
    ):
        text.calibration_windows(torch.arange(47), length=10, count=5, seed=0)
    with pytest.raises(TextError, match="9 tokens are less than one window of 10"):
        text.evaluation_windows(torch.arange(9), length=10)


def test_tokenizers_must_agree(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = tmp_path / "a.txt"
    source.write_text("The start is the same. <new> is not.")
    same = text.shared_tokens(str(source), {"base": tokenizer, "ours": tokenizer})
    assert torch.equal(same, text.tokenize([source.read_text()], tokenizer, ""))
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
