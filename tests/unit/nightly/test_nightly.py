"""What a night does with the checkpoints that it finds, as docs/nightly.md states it."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.nightly import catalog
from pipeline.nightly.night import Night, nightly
from schemas.errors import ConfigError
from tests.nights import cut_short, pointed
from tests.unit.nightly.conftest import Training, did
from workers.storage.files import sha256_of
from workers.storage.keys import OWNER
from workers.storage.places import files_below, folders_in, write

# --- what is done, and in which order -----------------------------------------------------------


def test_the_newest_come_first_by_number_and_the_rest_waits(training: Training) -> None:
    for number in (900, 1000, 1100):
        training.step(number)
    night = training.night(max=2)
    assert did(night) == [
        *(("started", "1100"), ("published", "1100")),
        *(("started", "1000"), ("published", "1000")),
    ]
    assert night.waiting == 1
    assert pointed(training.prefix) == {"0.20": "checkpoint-1100"}
    assert did(training.night(max=2)) == [("started", "900"), ("published", "900")]
    assert pointed(training.prefix) == {"0.20": "checkpoint-1100"}


def test_the_oldest_come_first_where_that_is_asked(training: Training) -> None:
    for number in (900, 1000):
        training.step(number)
    training.night(max=1, order="oldest")
    assert pointed(training.prefix) == {"0.20": "checkpoint-900"}
    training.night(max=1, order="oldest")
    assert pointed(training.prefix) == {"0.20": "checkpoint-1000"}


def test_an_idle_night_reads_no_weights_and_writes_nothing(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step(1)
    training.night()

    def untouched() -> dict[str, int]:
        return {
            name: (training.prefix / name).stat().st_mtime_ns
            for name in files_below(training.prefix)
            if not name.startswith(OWNER)
        }

    before = untouched()
    monkeypatch.setattr("pipeline.nightly.sources.sha256_of", None)
    night = training.night()
    assert (did(night), night.waiting) == ([], 0)
    assert untouched() == before
    assert len(training.compress.asked) == 1


def test_a_look_tells_what_waits_and_compresses_nothing(training: Training) -> None:
    for number in (1, 2, 3):
        training.step(number)
    night = nightly(training.config(max=2), None)
    assert (did(night), night.waiting) == ([], 3)
    assert len(training.night().of("published")) == 3
    assert nightly(training.config(), None).waiting == 0


def test_several_ratios_share_one_compression_and_a_later_one_is_added(
    training: Training,
) -> None:
    training.step(1)
    training.night(ratio="0.2,0.4")
    assert training.compress.asked == [("checkpoint-1", (0.2, 0.4))]
    training.night(ratio="0.2,0.4,0.6")
    assert training.compress.asked[1:] == [("checkpoint-1", (0.6,))]
    (folder,) = folders_in(training.prefix / "checkpoints")
    assert folders_in(training.prefix / "checkpoints" / folder) == [
        "ratio-0.20",
        "ratio-0.40",
        "ratio-0.60",
    ]
    assert set(pointed(training.prefix)) == {"0.20", "0.40", "0.60"}


def test_a_ratio_whose_folder_another_has_is_refused(training: Training) -> None:
    training.step(1)
    training.night(ratio=0.12)
    training.step(2)
    with pytest.raises(ConfigError, match=r"ratio 0\.125: 0\.12 is in the folder ratio-0\.12 of"):
        training.night(ratio=0.125)
    assert not any(row.name == "checkpoint-2" for row in training.rows)  # before any work


def test_another_method_is_another_key(training: Training) -> None:
    training.step(1)
    training.night()
    training.night(method="svd-llm")
    assert len({row.key for row in training.rows}) == 2
    assert len(training.compress.made) == 2


@pytest.mark.parametrize("use", ["calibration", "recovery"])
def test_another_content_of_a_text_is_another_key(
    training: Training, tmp_path: Path, use: str
) -> None:
    training.step(1)
    words = tmp_path / "words.txt"
    for content in ("one", "two", "two"):
        words.write_text(content)
        trained = {"enabled": True} if use == "recovery" else {}
        training.night(**{use: {"text": str(words), **trained}})
    assert len(training.compress.made) == 2


def test_every_text_of_a_mixture_is_in_the_key(training: Training, tmp_path: Path) -> None:
    training.step(1)
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("one")
    for content in ("first", "second", "second"):
        other.write_text(content)
        training.night(calibration={"text": [str(one), f"{other}:2"]})
    training.night(calibration={"text": f"{one},{other}:2"})
    assert len(training.compress.made) == 2


# --- what is in the source ----------------------------------------------------------------------


def test_a_half_written_checkpoint_waits_until_it_is_whole(training: Training) -> None:
    training.step(1)
    shutil.copytree(training.step(2), training.source / "kept")
    shutil.move(training.source / "kept", training.prefix.parent / "kept")
    cut_short(training.source / "checkpoint-2")
    night = training.night()
    assert did(night) == [("started", "1"), ("published", "1")]
    assert "not a complete safetensors file" in night.incomplete["checkpoint-2"]
    shutil.rmtree(training.source / "checkpoint-2")
    shutil.move(training.prefix.parent / "kept", training.source / "checkpoint-2")
    assert did(training.night()) == [("started", "2"), ("published", "2")]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_no_failure(training: Training, missing: str) -> None:
    (training.step(1) / missing).unlink()
    for _ in range(4):
        night = training.night(attempts=2)
        assert list(night.incomplete) == ["checkpoint-1"]
    assert training.rows == []


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES])
def test_what_goes_or_is_closed_while_it_is_hashed_ends_no_night(
    training: Training, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step(1)
    gone = training.step(2)

    def hashed(folder: Path, names: list[str]) -> dict[str, str]:
        if folder == gone:
            raise OSError(code, os.strerror(code), str(gone / "model.safetensors"))
        return sha256_of(folder, names)

    monkeypatch.setattr("pipeline.nightly.sources.sha256_of", hashed)
    night = training.night()
    assert did(night) == [("started", "1"), ("published", "1")]
    assert night.incomplete == {gone.name: f"{gone}/model.safetensors: {os.strerror(code)}"}


@pytest.mark.parametrize(
    "name", ["tmp-checkpoint-1", ".checkpoint-1", "_new", "1.tmp", "1_tmp", "1-TMP"]
)
def test_a_name_that_will_change_is_passed_over(training: Training, name: str) -> None:
    folder = training.step(1)
    folder.rename(training.source / name)
    assert training.night() == Night()


def test_the_final_model_beside_its_checkpoints_is_passed_over(training: Training) -> None:
    shutil.copytree(training.step(1), training.source, dirs_exist_ok=True)
    assert did(training.night()) == [("started", "1"), ("published", "1")]


def test_what_is_no_checkpoint_is_passed_over(training: Training) -> None:
    (training.source / "runs").mkdir()
    (training.source / "runs" / "events.out").write_text("")
    (training.source / "trainer_state.json").write_text("{}")
    night = training.night()
    assert night == Night()


def test_the_same_content_under_another_name_costs_nothing(training: Training) -> None:
    training.step(1, version=7)
    training.night()
    training.step(2, version=7)
    night = training.night()
    assert did(night) == [("duplicate", "2")]
    assert night.rows[0].detail == "checkpoint-1"
    assert did(training.night()) == []
    assert pointed(training.prefix) == {"0.20": "checkpoint-2"}
    assert len(training.compress.asked) == 1


def test_new_times_of_files_change_nothing(training: Training) -> None:
    folder = training.step(1)
    training.night()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert did(training.night()) == []


def test_numbers_order_the_catalogue_whatever_the_clock_says(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter(range(9, 0, -1))

    class Clock:
        @staticmethod
        def now(_zone: object) -> Any:
            return Clock

        @staticmethod
        def isoformat(timespec: str) -> str:
            return f"2026-01-0{next(days)}"

    monkeypatch.setattr(catalog, "datetime", Clock)
    for number in (1, 2, 3):
        training.step(number)
        training.night()
    assert [row.number for row in training.rows] == [1, 2, 3, 4, 5, 6]
    assert [row.at for row in training.rows] == sorted((r.at for r in training.rows), reverse=True)
    assert pointed(training.prefix) == {"0.20": "checkpoint-3"}
    assert did(training.night()) == []


def test_a_source_that_shrinks_takes_nothing_back(
    training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(training.step(1).parent / "checkpoint-1")
    training.step(2)
    training.night()
    before = files_below(training.prefix / "checkpoints")
    shutil.rmtree(training.source / "checkpoint-2")
    assert did(training.night()) == []
    assert "no checkpoint is there; see whether it is mounted" in caplog.text
    assert files_below(training.prefix / "checkpoints") == before
    assert pointed(training.prefix) == {"0.20": "checkpoint-2"}
    training.step(1)
    training.night()
    assert pointed(training.prefix) == {"0.20": "checkpoint-2"}  # 1 is older


def test_a_checkpoint_that_changes_while_it_is_compressed_is_another_one(
    training: Training,
) -> None:
    folder = training.step(1)
    weights = folder / "model.safetensors"

    def train_on(_: str) -> None:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    training.compress.during = train_on
    night = training.night()
    assert did(night) == [("started", "1"), ("failed", "1")]
    assert "changed while they were compressed" in night.rows[-1].detail
    assert not files_below(training.prefix / "checkpoints")
    training.compress.during = lambda _: None
    assert did(training.night()) == [("started", "1"), ("published", "1")]


def test_what_comes_beside_a_checkpoint_changes_nothing(training: Training) -> None:
    folder = training.step(1)
    beside = ("zero_to_fp32.py", "eval_results.json", "LICENSE.txt", "README.md")
    training.compress.during = lambda _: write(folder / beside[0], b"comes late")
    assert did(training.night()) == [("started", "1"), ("published", "1")]
    for name in beside:
        (folder / name).write_text("new")
    assert did(training.night()) == []


def test_one_that_goes_while_it_is_compressed_is_published(training: Training) -> None:
    folder = training.step(1)
    training.compress.during = lambda _: shutil.rmtree(folder)
    assert did(training.night()) == [("started", "1"), ("published", "1")]


def test_a_source_that_is_not_there_is_an_error(training: Training) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        training.night(watch=str(training.source / "absent"))
    checkpoint = training.step(1)
    with pytest.raises(ConfigError, match="is a checkpoint itself"):
        training.night(watch=str(checkpoint))
