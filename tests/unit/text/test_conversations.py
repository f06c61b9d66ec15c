"""Rows that are conversations, fields by name, and what a model's chat template makes of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets  # type: ignore[import-untyped]
import huggingface_hub
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from httpx2 import ConnectError
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from schemas.errors import TextError
from tests.models import tiny_tokenizer
from workers.process.logs import log
from workers.text.documents import iter_documents
from workers.text.rendering import Rendering
from workers.text.rows import Conversation, Document, Message, document_of
from workers.text.sources import commit_of
from workers.text.windows import read_text, shared_tokens

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('no such role') }}{% endif %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = Conversation((Message("user", "Why?"), Message("assistant", "So.")))
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    """One of its own: the shared one must not get a template."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer")
    return made


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def read(source: str) -> list[Document]:
    return list(iter_documents(source, "calibration"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": SHARED},
        {"conversations": CHAT},
        {"prompt": "Why?", "response": "So.", "id": 7},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
        {"instruction": "Why?", "output": "So.", "input": ""},
        {"question": "Why?", "answer": "So."},
        {"messages": [*CHAT, {"role": "assistant", "content": None}]},
        {"text": None, "messages": CHAT},
    ],
)
def test_a_conversation_is_found_by_the_names_of_its_fields(row: dict[str, Any]) -> None:
    assert document_of(row, None, "here") == ASKED


def test_what_an_instruction_is_about_belongs_to_it() -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    expected = Conversation((Message("user", "Add.\n\n1, 2"), Message("assistant", "3")))
    assert document_of(row, None, "here") == expected


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"body": "a", "id": 1}, None, r"under 'text', and no conversation \(found 'body', 'id'\)"),
        ({"prompt": "a"}, None, "no string under 'text', and no conversation"),
        ({"text": "a"}, "body", r"no string under 'body', .* \(found 'text'\).*as FILE#FIELD"),
        ({"messages": ["a"]}, None, "no messages under 'messages'; each needs a role"),
        ({"messages": [{"content": "a"}]}, None, "each needs a role and a content"),
        ({"messages": [{"role": "user", "content": 1}]}, None, "no string under 'messages'"),
        ({"prompt": "a", "response": "\ud800"}, None, "not valid Unicode"),
    ],
)
def test_a_row_without_a_document_is_refused(
    row: dict[str, Any], field: str | None, message: str
) -> None:
    with pytest.raises(TextError, match=f"^here: .*{message}"):
        document_of(row, field, "here")


def test_a_field_is_chosen_after_the_name_of_the_text(tmp_path: Path) -> None:
    rows = [{"text": "no", "body": "one", "chat": CHAT}, {"body": None, "chat": []}]
    source = write_rows(tmp_path / "a#1.jsonl", rows)
    assert read(f"{source}#body") == ["one", ""]
    assert read(f"{source}#chat") == [ASKED, Conversation(())]
    columns = {"body": ["one", None], "chat": [CHAT, []]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(f"{tmp_path / 'a.parquet'}#body") == ["one", ""]
    assert read(f"{tmp_path / 'a.parquet'}#chat") == [ASKED, Conversation(())]
    with pytest.raises(TextError, match=r"no column 'rest' \(found body, chat\)"):
        read(f"{tmp_path / 'a.parquet'}#rest")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(TextError, match="has no field 'body'"):
        read(f"{tmp_path / 'a.txt'}#body")


def test_a_table_of_conversations_needs_no_field(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [1], "conversations": [SHARED]}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet")) == [ASKED]
    parquet.write_table(
        pa.table({"id": [1], "prompt": ["Why?"], "response": ["So."]}), tmp_path / "b.parquet"
    )
    assert read(str(tmp_path / "b.parquet")) == [ASKED]


def test_conversations_are_written_by_the_chat_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    refused = {"messages": [{"role": "tool", "content": "a"}]}
    rows = [{"messages": CHAT}, {"messages": []}, refused, {"text": "plain"}, {"text": " "}]
    source = write_rows(tmp_path / "a.jsonl", rows)
    tokenizer.chat_template = TEMPLATE
    tokens, facts = read_text(source, "calibration", tokenizer)
    expected = "<user>Why?</><assistant>So.</>\n\nplain"  # no prompt for an answer
    assert tokens.ids.tolist() == tokenizer(expected)["input_ids"]
    assert (facts.documents, facts.conversations, facts.empty, facts.refused) == (2, 1, 2, 1)
    assert facts.commit is None
    assert facts.remarks == [
        "1 conversations written by the model's chat template",
        "2 empty rows left out",
        "1 conversations left out, which its template refuses",
    ]


def test_without_a_template_every_message_is_a_paragraph_with_its_role(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}, {"conversations": SHARED}])
    tokens, facts = read_text(source, "recovery", tokenizer)
    once = "User: Why?\n\nAssistant: So."
    assert tokens.ids.tolist() == tokenizer(f"{once}\n\n{once}")["input_ids"]
    assert facts.remarks == [
        "2 conversations written as paragraphs with roles",
        "the model has no chat template",
    ]


def test_plain_text_is_nothing_to_speak_of(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.txt").write_text("One text.")
    assert read_text(str(tmp_path / "a.txt"), "calibration", tokenizer).facts.remarks == []


def test_empty_rows_stay_where_all_rows_are_joined(tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[Document] = ["a", "", "b"]
    assert list(Rendering(tokenizer, joins_empty=True)(rows)) == rows
    assert list(Rendering(tokenizer)(rows)) == ["a", "b"]


def test_what_a_name_on_the_hub_stands_for_is_looked_up_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked, commits = list[Any](), list[Any]()

    def dataset_info(_: object, repo: str, revision: str | None) -> SimpleNamespace:
        asked.append((repo, revision))
        return SimpleNamespace(sha="c" * 40)

    def load_dataset(*_: Any, **options: Any) -> list[dict[str, str]]:
        commits.append(options["revision"])
        return [{"text": "a", "sentence": "b"}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("org/name", "org/name@v1", "ptb"):
        facts = read_text(name, "calibration", tokenizer).facts
        assert facts.commit == "c" * 40
        assert f"commit {facts.commit}" in facts.remarks
    assert asked == [
        ("org/name", None),
        ("org/name", "v1"),
        ("ptb-text-only/ptb_text_only", "refs/convert/parquet"),
    ]
    assert commits == ["c" * 40] * 3
    pinned = read_text("slimpajama", "calibration", tokenizer).facts.commit
    assert pinned == commits[-1] != "c" * 40
    assert len(asked) == 3


@pytest.mark.parametrize("error", [OSError, ConnectError])
def test_a_hub_that_does_not_tell_the_commit_is_said_so(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def dataset_info(*_: object, **__: object) -> None:
        raise error("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(TextError, match=r"hub dataset org/name: not read \(\w+: no route\)"):
        commit_of("org/name")


def test_an_evaluation_says_how_its_text_was_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(log, "info", lambda line, *values: said.append(line % values))
    source = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}, {"text": ""}])
    tokenizer.chat_template = TEMPLATE
    tokens = shared_tokens(source, {"base": tokenizer, "made": tokenizer})
    assert tokens.ids.tolist() == tokenizer("<user>Why?</><assistant>So.</>")["input_ids"]
    assert said == [
        f"evaluation text {source}: 1 conversations written by the model's chat template; "
        "1 empty rows left out"
    ]
