"""Texts and tokenizers that are refused before a run, and a text that is read once."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipeline.request.inputs import gather
from pipeline.request.preflight import check
from schemas.errors import CheckpointError, TextError
from schemas.request.config import RunConfig
from schemas.run.texts import TextFacts
from tests.models import tiny_model
from tests.prose import prose
from tests.unit.request.conftest import refusal
from workers.model.loading import load_tokenizer
from workers.text.documents import iter_documents
from workers.text.rows import Document
from workers.text.sources import Split
from workers.text.windows import Tokens

SMALL = {"samples": 4, "sequence_length": 16, "gradient_samples": 4, "gradient_length": 16}

# --- text -------------------------------------------------------------------------------------


def test_a_text_that_is_none_is_refused_with_file_and_line(
    request_for: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ')
    message = refusal(request_for(text=tmp_path / "a.jsonl"), TextError)
    assert f"{tmp_path / 'a.jsonl'}, line 2: not JSON in UTF-8" in message


def test_what_is_no_file_is_no_text(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("folder.txt", "pipe.txt"):
        message = refusal(request_for(text=tmp_path / name), TextError)
        assert f"{tmp_path / name}: not a plain file; name a file" in message
    assert "not found; check" in refusal(request_for(text=tmp_path / "absent.txt"), TextError)


def test_a_calibration_text_is_read_once(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its documents come with what was checked; tokenising takes them out."""
    text, other = tmp_path / "one.txt", tmp_path / "other.txt"
    for path in (text, other):
        path.write_text(prose(40_000))
    small = {"samples": 2, "sequence_length": 16, "gradient_samples": 2, "gradient_length": 16}
    evaluation = {"text": str(other), "sequence_length": 16, "windows": 2}
    config = request_for(calibration={"text": str(text), **small}, evaluation=evaluation)
    checked = check(config)
    assert checked.texts == {str(text): [text.read_text()]}
    read: list[str] = []

    def reading(name: str, split: Split, commit: str | None) -> Iterator[Document]:
        read.append(name)
        return iter_documents(name, split, commit)

    monkeypatch.setattr("workers.text.windows.iter_documents", reading)
    assert gather(checked).evaluation is not None
    assert read == [str(other)]  # its first windows
    assert not checked.texts


def test_every_method_reads_a_text_on_a_hub_as_far_as_gradients_need_it(
    request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their windows are chosen from it, so others could not share a run directory."""
    asked: dict[str, int] = {}
    small = {"samples": 2, "sequence_length": 16, "gradient_length": 16}
    unscored = {"evaluation": {"text": "none"}}

    def reading(name: str, *_: object, at_least: int, **__: object) -> Any:
        asked[method] = at_least
        tokens = Tokens(torch.empty(0, dtype=torch.long), torch.zeros(at_least, dtype=torch.long))
        return tokens, TextFacts(text=name, use="calibration", documents=1)

    monkeypatch.setattr("workers.text.mixture.read_text", reading)
    for method in ("two-sided", "svd-llm"):
        gather(check(request_for(method=method, calibration={"text": "c4"} | small, **unscored)))
    assert asked["svd-llm"] == asked["two-sided"] > 2 * 16


# --- tokenizers -------------------------------------------------------------------------------


def test_a_model_without_tokenizer_is_refused(request_for: Any, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    message = refusal(request_for(model=str(folder)), CheckpointError)
    assert f"{folder}: no tokenizer (tokenizer.json or " in message
    assert "copy the tokenizer files of the base model there" in message


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 10**5, b'{"model": {"type": 3}}'])
def test_a_damaged_tokenizer_is_refused(content: bytes, request_for: Any, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    message = refusal(request_for(model=str(folder)), CheckpointError)
    assert message.startswith(f"{folder / 'tokenizer.json'}: not a tokenizer (")
    with pytest.raises(CheckpointError, match="no tokenizer that transformers can load"):
        load_tokenizer(folder, trust_remote_code=False)


@pytest.mark.parametrize(
    ("content", "why"), [("{", "not JSON"), ("[]", "not the settings"), ("null", "not the sett")]
)
def test_damaged_settings_of_a_tokenizer_are_refused(
    content: str, why: str, request_for: Any, folder: Path
) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    message = refusal(request_for(model=str(folder)), CheckpointError)
    assert f"{folder / 'tokenizer_config.json'}: {why}" in message


def test_a_tokenizer_that_is_code_is_refused_and_not_run(
    request_for: Any, folder: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    (folder / "tokenization_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    message = refusal(request_for(model=str(folder)), CheckpointError)
    assert "no code of a base is run; save it as tokenizer.json" in message
    with pytest.raises(CheckpointError):
        load_tokenizer(folder, trust_remote_code=False)
    assert not marker.exists()


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(
    request_for: Any, text: Path, tmp_path: Path
) -> None:
    small = tiny_model(tmp_path / "small", vocab_size=300)
    checked = check(request_for(model=str(small), calibration=SMALL | {"text": str(text)}))
    with pytest.raises(CheckpointError, match=r"gives token 3\d\d, but the model embeds only 300"):
        gather(checked)


def training(request_for: Any, calibration: Path, **recovery: Any) -> RunConfig:
    config = request_for(recovery={"enabled": True, "sequence_length": 16} | recovery)
    small = config.calibration.model_copy(update={**SMALL, "text": (str(calibration),)})
    return cast(RunConfig, config.model_copy(update={"calibration": small}))


def write_letters(folder: Path) -> tuple[Path, Path]:
    """Write two texts, each of a letter of its own."""
    texts = folder / "one.txt", folder / "other.txt"
    for path, letter in zip(texts, "ab", strict=True):
        path.write_text(f"{letter} " * 4_000)
    return texts


def test_a_local_text_to_train_on_is_read_whole(request_for: Any, tmp_path: Path) -> None:
    """Else a file that is sorted by its topics would teach the first of them."""
    rows = tmp_path / "sorted.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{c} " * 40}) + "\n" for c in "a" * 99 + "b" * 99))
    one, _ = write_letters(tmp_path)
    text = gather(check(training(request_for, one, text=(str(rows),), tokens=16 * 36, held_out=4)))
    assert text.recovery is not None
    kinds = {tuple(sorted(set(row.tolist()))) for row in text.recovery.windows}
    assert len(kinds) > 1


def test_texts_to_train_on_are_mixed_by_their_shares(request_for: Any, tmp_path: Path) -> None:
    one, other = write_letters(tmp_path)
    mixed = training(
        request_for, one, text=(f"{one}:1", f"{other}:1", f"{one}:2"), tokens=16 * 36, held_out=4
    )
    text = gather(check(mixed)).recovery
    assert text is not None
    assert (len(text.windows), len(text.held_out)) == (36, 4)
    kinds = Counter(tuple(sorted(set(row.tolist()))) for row in (*text.windows, *text.held_out))
    assert sorted(kinds.values()) == [10, 30]


def test_what_judges_a_training_is_the_same_however_long_it_is(
    request_for: Any, tmp_path: Path
) -> None:
    """So a checkpoint that is trained further is not judged by what it was trained on."""
    rows = tmp_path / "rows.txt"
    rows.write_text(prose(9_000))
    seen: list[set[tuple[int, ...]]] = []
    for windows in (8, 24):
        asked = training(request_for, rows, tokens=16 * windows, held_out=4)
        text = gather(check(asked)).recovery
        assert text is not None
        assert len(text.windows) == windows
        seen += [{tuple(row.tolist()) for row in part} for part in text]
    trained, judging, further, still = seen
    assert judging == still
    assert not judging & (trained | further)


def test_a_run_calibrates_on_several_texts_by_their_shares(
    request_for: Any, tmp_path: Path
) -> None:
    texts = write_letters(tmp_path)
    asked = f"{texts[0]}:3, {texts[1]}"
    inputs = gather(check(request_for(calibration={**SMALL, "text": asked})))
    assert inputs.backward is not None
    for windows in (inputs.forward, inputs.backward):
        kinds = Counter(frozenset(row.tolist()) for row in windows)
        assert list(kinds.values()) == [3, 1]
        assert not frozenset.intersection(*kinds)  # each window is of one text
    assert [(facts.text, facts.use) for facts in inputs.texts] == [
        (str(path), "calibration") for path in texts
    ]


def test_a_text_with_a_comma_in_its_path_is_refused(
    request_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x,y").mkdir()
    monkeypatch.chdir(tmp_path / "x,y")
    message = refusal(request_for(text="a.txt"), TextError)
    assert "x,y/a.txt: a comma separates texts; rename the file" in message


def test_a_recovery_trains_on_the_mixture_that_a_run_calibrates_on(
    request_for: Any, tmp_path: Path
) -> None:
    texts = write_letters(tmp_path)
    asked = {**SMALL, "text": f"{texts[0]}:3,{texts[1]}"}
    recovery = {"enabled": True, "sequence_length": 16, "tokens": 16 * 36, "held_out": 4}
    text = gather(check(request_for(calibration=asked, recovery=recovery))).recovery
    assert text is not None
    kinds = Counter(tuple(sorted(set(row.tolist()))) for row in (*text.windows, *text.held_out))
    assert sorted(kinds.values()) == [10, 30]


def test_a_text_that_is_too_short_for_gradients_says_so(request_for: Any, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a " * 200)
    config = request_for()
    asked = config.calibration.model_copy(
        update={**SMALL, "text": (str(text),), "gradient_samples": None}
    )
    checked = check(config.model_copy(update={"calibration": asked}))
    with pytest.raises(TextError, match=r"calibration \(gradients\) .* of 16, but 32 are asked"):
        gather(checked)


def test_a_text_that_is_too_short_to_train_on_is_refused(request_for: Any, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(prose(600))
    checked = check(training(request_for, text, tokens=16, held_out=10_000))
    with pytest.raises(TextError, match="10000 of them are held out"):
        gather(checked)
    checked = check(training(request_for, text, sequence_length=4_096))
    with pytest.raises(TextError, match=r"recovery .* are 0 windows of 4096"):
        gather(checked)
