"""Documents of local files and data sets, and every message a user can run into."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from schemas.errors import TextError
from workers.text.documents import iter_documents
from workers.text.rows import Document
from workers.text.sources import Split

SPLITS: tuple[Split, ...] = ("calibration", "evaluation")


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
        ("a.txt", "one\ntwo".encode("utf-16-le"), r"a\.txt, line 1: a NUL byte"),
        ("a.txt", b"one\ntwo\0", r"a\.txt, line 2: a NUL byte"),
        ("a.txt", b" \n\n", r"a\.txt' \(calibration\): empty"),
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', r"line 2: not JSON in UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2: not JSON.*one object a line"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 10**5, r"line 2: not JSON in UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2: no string under 'text'"),
        ("a.jsonl", b'["a"]\n', r"line 1: no string under 'text'"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: no string under 'text'"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: not valid Unicode"),
        ("a.jsonl", b"\n", "empty"),
        ("a.parquet", b"", r"a\.parquet: cannot be read"),
        ("a.parquet", b"PAR1 is not enough", r"a\.parquet: cannot be read"),
        ("a.csv", b"text\n", r"not a file of a known kind \(\.txt, \.jsonl, \.parquet\)"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).isprintable()


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
