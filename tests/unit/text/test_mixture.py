"""The windows of several texts, and which of them a run compares on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import TextError
from schemas.run.texts import TextFacts
from tests.models import tiny_tokenizer
from tests.prose import prose
from workers.text.mixture import Mixture, read_mixture
from workers.text.rows import Document
from workers.text.sources import evaluation_source
from workers.text.windows import Text, Tokens, calibration_windows

NONE = torch.empty(0, dtype=torch.long)
ONE, OTHER = Tokens(NONE, torch.arange(400)), Tokens(NONE, torch.arange(1000, 1400))


def mixture(**shares: float) -> Mixture:
    return Mixture({"one": ONE, "other": OTHER}, shares, [])


def test_a_single_text_is_cut_as_ever() -> None:
    alone = Mixture({"one": ONE}, {"one": 0.3}, [])
    assert torch.equal(alone.windows(8, 5, seed=3), calibration_windows(ONE, 8, 5, seed=3))


def test_every_text_gives_its_part_of_the_windows() -> None:
    windows = mixture(one=1.0, other=3.0).windows(8, 12, seed=3)
    assert torch.equal(windows[:3], calibration_windows(ONE, 8, 3, seed=3))
    assert torch.equal(windows[3:], calibration_windows(OTHER, 8, 9, seed=3))


def test_a_text_that_would_not_be_seen_is_refused_by_name() -> None:
    with pytest.raises(TextError, match=r"\(other\) text: 1 windows are fewer than the 2 texts"):
        mixture(one=99.0, other=1.0).windows(8, 1, seed=0)
    assert mixture(one=99.0, other=1.0).windows(8, 0, seed=0).shape == (0, 8)


def test_the_text_that_is_too_short_is_named() -> None:
    with pytest.raises(TextError, match=r"gradients \(other\) text: .* are 50 windows of 8"):
        mixture(one=1.0, other=9.0).windows(8, 60, seed=0, purpose="gradients")


def test_local_texts_are_read_whole(tmp_path: Path) -> None:
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    for path, size in zip(paths, (3000, 5000), strict=True):
        path.write_text(prose(size))
    named = (f"{paths[0]}:2", str(paths[1]))
    found = read_mixture(named, tiny_tokenizer(), [(3, 8)])
    assert list(found.shares.values()) == [2.0, 1.0]
    assert [facts.text for facts in found.facts] == [*map(str, paths)]
    for path in paths:
        ids = tiny_tokenizer()(path.read_text())["input_ids"]
        assert found.tokens[str(path)].ids.tolist() == ids


def test_a_data_set_is_read_as_far_as_its_part_of_the_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = {}

    def reading(name: str, *_: Any, at_least: int | None, documents: Any) -> Text:
        read[name] = at_least
        return Text(ONE, TextFacts(text=name, use="calibration", documents=1))

    monkeypatch.setattr("workers.text.mixture.read_text", reading)
    read_mixture(("c4:3", "ptb", "a.txt"), tiny_tokenizer(), [(10, 100), (100, 8)])
    assert read == {"c4": 600, "ptb": 200, "a.txt": None}


def test_known_documents_are_taken_out(tmp_path: Path) -> None:
    known: dict[str, list[Document]] = {"a.txt": [prose(3000)], "other.txt": ["other"]}
    found = read_mixture(("a.txt",), tiny_tokenizer(), [(3, 8)], known)
    assert found.tokens["a.txt"].ids.tolist() == tiny_tokenizer()(prose(3000))["input_ids"]
    assert list(known) == ["other.txt"]


@pytest.mark.parametrize(
    ("asked", "calibration", "expected"),
    [
        (None, ("a.txt",), None),
        (None, ("a.txt:3", "c4:0.5", "wikitext2"), "c4"),
        ("b.txt", ("c4",), "b.txt"),
        ("none", ("c4",), None),
    ],
)
def test_base_and_result_are_compared_on_the_first_known_data_set(
    asked: str | None, calibration: tuple[str, ...], expected: str | None
) -> None:
    assert evaluation_source(asked, calibration) == expected
