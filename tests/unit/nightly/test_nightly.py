"""Nights over a training run, each stated situation of docs/nightly.md, with a fake compression."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyarrow import parquet  # type: ignore[import-untyped]

from pipeline.cli.tables.nights import catalog_json, catalog_table, night_table, sparkline
from pipeline.nightly import catalog
from pipeline.nightly.night import Night, nightly
from pipeline.run_directory.ownership import owned
from schemas.errors import (
    ClusterError,
    ConfigError,
    NumericsError,
    OwnershipError,
    StorageFullError,
    TextError,
    WorkerError,
)
from schemas.location import Url
from schemas.request.nightly import CatalogRow, NightlyConfig
from tests.models import tiny_model
from tests.nights import FakeCompress, cut_short, kill, pointed, write_checkpoint
from tests.prose import prose
from workers.storage.keys import OWNER
from workers.storage.places import exists, files_below, folders_in, read_bytes, upload, write

LOOP = "The city lies on the river" + " and on" * 20


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose(1_000))
    return path


class Training:
    """A folder of checkpoints, and nights over it."""

    def __init__(self, folder: Path, template: Path, text: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.prefix: Path = folder / "out"
        self.compress = FakeCompress()
        self._template = template
        self._text = {"calibration": {"text": str(text)}, "evaluation": {"text": str(text)}}

    def step(self, number: int, version: int | None = None) -> Path:
        folder = self.source / f"checkpoint-{number}"
        return write_checkpoint(self._template, folder, number if version is None else version)

    def config(self, **settings: Any) -> NightlyConfig:
        defaults = {"watch": str(self.source), "output": self.prefix, "ratio": 0.2, "max": 9}
        return NightlyConfig.model_validate(defaults | self._text | settings)

    def night(self, **settings: Any) -> Night:
        return nightly(self.config(**settings), self.compress)

    @property
    def rows(self) -> list[CatalogRow]:
        return catalog.read(self.prefix)

    def events(self) -> list[tuple[str, str]]:
        return [(row.event, row.name.removeprefix("checkpoint-")) for row in self.rows]


@pytest.fixture
def training(tmp_path: Path, template: Path, text: Path) -> Training:
    return Training(tmp_path, template, text)


def did(night: Night) -> list[tuple[str, str]]:
    return [(row.event, row.name.removeprefix("checkpoint-")) for row in night.rows]


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


def test_another_method_is_another_key(training: Training) -> None:
    training.step(1)
    training.night()
    training.night(method="svd-llm")
    assert len({row.key for row in training.rows}) == 2
    assert len(training.compress.made) == 2


def test_another_content_of_the_calibration_text_is_another_key(
    training: Training, tmp_path: Path
) -> None:
    training.step(1)
    words = tmp_path / "words.txt"
    for content in ("one", "two", "two"):
        words.write_text(content)
        training.night(calibration={"text": str(words)})
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


@pytest.mark.parametrize("name", ["tmp-checkpoint-1", ".checkpoint-1", "_new", "checkpoint-1.tmp"])
def test_a_name_that_will_change_is_passed_over(training: Training, name: str) -> None:
    folder = training.step(1)
    folder.rename(training.source / name)
    assert training.night() == Night()


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


def test_a_source_that_shrinks_takes_nothing_back(training: Training) -> None:
    shutil.rmtree(training.step(1).parent / "checkpoint-1")
    training.step(2)
    training.night()
    before = files_below(training.prefix / "checkpoints")
    shutil.rmtree(training.source / "checkpoint-2")
    assert did(training.night()) == []
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


# --- failures, kills, other nights --------------------------------------------------------------


def test_a_failing_checkpoint_keeps_no_other_from_being_done(training: Training) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.compress.failures["checkpoint-3"] = NumericsError("q_proj: not finite")
    night = training.night(max=2)
    assert did(night) == [
        *(("started", "3"), ("failed", "3")),
        *(("started", "2"), ("published", "2")),
    ]
    assert did(training.night(max=1)) == [("started", "1"), ("published", "1")]  # 3 comes last
    assert did(training.night(max=1)) == [("started", "3"), ("failed", "3")]


def test_one_that_always_fails_is_put_in_quarantine_and_named_until_retried(
    training: Training,
) -> None:
    training.step(1)
    training.compress.failures["checkpoint-1"] = WorkerError("out of memory")
    assert did(training.night(attempts=2))[-1] == ("failed", "1")
    assert did(training.night(attempts=2))[-1] == ("quarantined", "1")
    for _ in range(2):
        night = training.night(attempts=2)
        assert did(night) == []
        assert night.quarantined == {"checkpoint-1": "out of memory"}
    del training.compress.failures["checkpoint-1"]
    night = training.night(attempts=2, retry=("checkpoint-1",))
    assert did(night) == [("retry", "1"), ("started", "1"), ("published", "1")]
    assert night.quarantined == {}


def test_retry_of_what_was_never_tried_is_refused(training: Training) -> None:
    with pytest.raises(ConfigError, match="never tried"):
        training.night(retry=("checkpoint-9",))


def test_a_killed_night_is_gone_on_with_in_the_same_places(training: Training) -> None:
    folder = training.step(1)
    kill(training.compress, training.night)
    assert training.events() == [("started", "1")]
    (run,) = folders_in(training.prefix / "runs")
    folder.rename(training.source / "renamed-2")
    training.night()
    assert training.events()[1:] == [
        ("duplicate", "renamed-2"),
        *[(event, "renamed-2") for event in ("started", "published")],
    ]
    assert folders_in(training.prefix / "checkpoints") == [run]
    assert folders_in(training.prefix / "runs") == []


def test_one_that_kills_every_night_is_put_in_quarantine(training: Training) -> None:
    training.step(1)
    for _ in range(3):
        kill(training.compress, training.night)
    night = training.night()
    assert did(night) == [("quarantined", "1")]
    assert night.quarantined == {"checkpoint-1": "3 attempts, the last one was killed"}


@pytest.mark.parametrize("error", [StorageFullError("full"), TextError("gone"), KeyboardInterrupt])
def test_what_is_not_its_fault_ends_the_night_and_does_not_count(
    training: Training, error: BaseException | type[BaseException]
) -> None:
    training.step(1)

    def fail(_: str) -> None:
        raise error

    training.compress.during = fail
    for _ in range(4):
        with pytest.raises(error if isinstance(error, type) else type(error)):
            training.night(attempts=2)
    assert {row.event for row in training.rows} == {"started", "stopped"}
    training.compress.during = lambda _: None
    assert did(training.night(attempts=2)) == [("started", "1"), ("published", "1")]


def test_a_pointer_that_a_killed_night_did_not_move_is_moved_by_the_next(
    training: Training,
) -> None:
    training.step(1)
    training.night()
    (training.prefix / "latest.json").unlink()
    training.night()
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}


def test_of_two_nights_at_once_the_second_does_nothing(training: Training) -> None:
    training.step(1)
    with (
        owned(training.prefix / OWNER, lambda _: None),
        pytest.raises(OwnershipError, match="is at work"),
    ):
        training.night()
    assert training.rows == []
    assert training.compress.asked == []


def test_a_night_that_lost_its_place_writes_nothing(training: Training) -> None:
    training.step(1)
    training.compress.during = lambda _: write(training.prefix / OWNER / "2.json", b"{}")
    with pytest.raises(OwnershipError, match="has taken it"):
        training.night()
    assert training.events() == [("started", "1")]
    assert pointed(training.prefix) == {}


def test_rows_of_writers_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    def row(name: str) -> CatalogRow:
        return CatalogRow(event="started", name=name, order=name, key=name, folder=name)

    def write_ten(writer: int) -> None:
        for number in range(10):
            catalog.append(tmp_path, [row(f"{writer}-{number}")])

    threads = [threading.Thread(target=write_ten, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = catalog.read(tmp_path)
    assert [found.number for found in rows] == list(range(1, 41))
    assert len({found.name for found in rows}) == 40


# --- gate and retention -------------------------------------------------------------------------


def test_what_does_not_pass_the_gate_is_kept_but_not_published(training: Training) -> None:
    training.step(1)
    training.night(gate={"perplexity": "5%"})
    training.step(2)
    training.compress.increases["checkpoint-2"] = 0.5
    night = training.night(gate={"perplexity": "5%"})
    assert did(night) == [("started", "2"), ("rejected", "2")]
    assert night.rows[-1].detail == "perplexity 20 -> 30 (+50.00%, allowed +5.00%)"
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}
    assert did(training.night(gate={"perplexity": "5%"})) == []
    training.night(gate={"perplexity": "60%"}, retry=("checkpoint-2",))
    assert pointed(training.prefix) == {"0.20": "checkpoint-2"}
    assert len(training.compress.made) == 2


def test_each_ratio_passes_or_not_by_itself(training: Training) -> None:
    training.step(1)
    judged = iter([0.01, 0.5])

    class Worse(dict[str, float]):
        def get(self, *_: object) -> float:
            return next(judged)

    training.compress.increases = Worse()
    training.night(ratio="0.2,0.4", gate={"perplexity": 0.05})
    assert [row.event for row in training.rows] == ["started", "published", "rejected"]
    assert pointed(training.prefix) == {"0.20": "checkpoint-1"}


def test_a_cluster_that_is_not_there_is_no_fault_of_a_checkpoint(training: Training) -> None:
    training.step(1)
    training.compress.failures["checkpoint-1"] = ClusterError("no Ray cluster there")
    for _ in range(4):
        with pytest.raises(ClusterError):
            training.night(attempts=2)
    training.compress.failures.clear()
    assert did(training.night(attempts=2)) == [("started", "1"), ("published", "1")]


def test_what_became_of_each_is_told(training: Training) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.compress.failures["checkpoint-1"] = NumericsError("q_proj: not finite")
    training.compress.increases["checkpoint-2"] = 0.5
    told: list[str] = []
    nightly(training.config(gate={"perplexity": "5%"}), training.compress, tell=told.append)
    assert told == ["succeeded", "rejected", "failed"]


def test_a_degenerate_continuation_is_rejected(training: Training) -> None:
    training.step(1)
    training.compress.samples["checkpoint-1"] = LOOP
    night = training.night(gate={"perplexity": 1.0})
    assert night.rows[-1].detail == "degenerate generation: 'on and' again and again"


def test_a_gate_without_a_text_is_refused_before_any_work(training: Training) -> None:
    training.step(1)
    with pytest.raises(ConfigError, match="no text to evaluate on; name one with --evaluate"):
        training.night(gate={"perplexity": 0.05}, evaluation={})
    assert not training.prefix.exists()


def test_retention_keeps_the_newest_and_removes_runs_and_what_was_rejected(
    training: Training,
) -> None:
    for number in (1, 2, 3):
        training.step(number)
    training.compress.increases["checkpoint-1"] = 0.5
    training.night(gate={"perplexity": 0.05}, keep=1)
    (folder,) = folders_in(training.prefix / "checkpoints")
    assert folder.startswith("checkpoint-3-")
    assert folders_in(training.prefix / "runs") == []
    removed = [row.name for row in training.rows if row.event == "removed"]
    assert sorted(removed) == ["checkpoint-1", "checkpoint-2"]
    assert did(training.night(gate={"perplexity": 0.05}, keep=1)) == []


def test_without_retention_all_outputs_stay(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
        training.night()
    assert len(folders_in(training.prefix / "checkpoints")) == 2


def test_what_the_nights_did_not_make_is_not_removed(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
        training.night()
    output = training.prefix / str(training.rows[1].path)
    manifest = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps(manifest | {"output": "another"}))
    (training.prefix / "runs" / "mine").mkdir(parents=True)
    before = files_below(output)
    night = training.night(keep=1)
    assert did(night) == []
    assert files_below(output) == before
    assert (training.prefix / "runs" / "mine").is_dir()


# --- object stores, tables ----------------------------------------------------------------------


def test_source_prefix_and_runs_can_be_in_a_store(training: Training) -> None:
    root = Url(f"memory://{uuid4().hex}")
    for number in (9, 10):
        for path in training.step(number).iterdir():
            upload(path, root / "source" / f"checkpoint-{number}" / path.name)
    places = {"watch": str(root / "source"), "output": root / "out", "run_dir": root / "runs"}
    training.prefix = root / "out"  # type: ignore[assignment]
    assert did(training.night(**places, max=1)) == [("started", "10"), ("published", "10")]
    assert pointed(root / "out") == {"0.20": "checkpoint-10"}
    assert did(training.night(**places, keep=1)) == [
        *(("started", "9"), ("published", "9"), ("removed", "9")),
    ]
    assert did(training.night(**places, keep=1)) == []
    assert files_below(root / "runs") == {}
    (removed,) = {row.path for row in training.rows if row.event == "removed"}
    assert not exists(root / "out" / str(removed) / "_SUCCESS")
    half = read_bytes(root / "source" / "checkpoint-9" / "model.safetensors")[:-1]
    write(root / "source" / "checkpoint-11" / "model.safetensors", half)
    assert list(training.night(**places).incomplete) == ["checkpoint-11"]


def test_the_catalogue_is_one_table_to_others(training: Training) -> None:
    training.step(1)
    training.night(ratio="0.2,0.4")
    (training.prefix / "catalog" / "000009.parquet.1234.tmp").write_text("left by a kill")
    training.night(ratio="0.2,0.4")
    table = parquet.read_table(training.prefix / "catalog")
    assert table.column("event").to_pylist() == ["started", "published", "published"]
    assert table.column("ratio").to_pylist() == [None, 0.2, 0.4]


def test_a_damaged_row_is_named(training: Training) -> None:
    training.step(1)
    training.night()
    (training.prefix / "catalog" / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"000001\.parquet: no row of a catalogue"):
        training.night()


def test_a_damaged_page_of_a_row_is_named(training: Training) -> None:
    training.step(1)
    training.night()
    path = training.prefix / "catalog" / "000001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 12) + content[-8:])
    with pytest.raises(ConfigError, match=r"000001\.parquet: no row of a catalogue"):
        training.night()


def test_a_folder_that_cannot_be_read_stops_no_other(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step(1)
    closed = training.source / "lost+found"
    closed.mkdir()
    iterdir = Path.iterdir

    def refuse(path: Path) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    night = training.night()
    assert [row.name for row in night.of("published")] == ["checkpoint-1"]
    assert "Permission denied" in night.incomplete["lost+found"]


def test_a_name_that_is_no_unicode_is_told_and_stops_no_other(training: Training) -> None:
    training.step(1)
    name = os.fsdecode(b"checkpoint-2\xff")
    training.step(2).rename(training.source / name)
    night = training.night()
    assert [row.name for row in night.of("published")] == ["checkpoint-1"]
    assert "not UTF-8" in night.incomplete[name]
    assert r"checkpoint-2\udcff" in shown(night_table(night))
    assert training.night().rows == []


def shown(table: object, width: int = 200) -> str:
    import io

    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_tables_tell_history_and_trends(training: Training) -> None:
    for number in (1, 2):
        training.step(number)
    training.compress.increases["checkpoint-2"] = 0.5
    night = training.night(gate={"perplexity": "5%"})
    cut_short(training.step(3))
    said = shown(night_table(training.night(gate={"perplexity": "5%"})))
    assert "checkpoint-3: not complete yet" in said
    assert "nothing to do" in said
    assert "rejected" in shown(night_table(night))
    said = shown(catalog_table(training.prefix))
    assert "Increase of perplexity at ratio 0.20: ▁█" in said
    assert "+50.00%" in said
    assert "killed" not in said
    training.step(4)
    kill(training.compress, training.night)
    assert "no outcome: killed, or under way" in shown(catalog_table(training.prefix))
    found = json.loads(catalog_json(training.prefix))
    assert found["latest"]["ratios"]["0.20"]["name"] == "checkpoint-1"
    assert len(found["rows"]) == len(training.rows)


def test_a_log_of_80_columns_has_whole_names(training: Training) -> None:
    training.step(123456)
    training.compress.increases["checkpoint-123456"] = 0.5
    night = training.night(gate={"perplexity": "5%"})
    training.night(gate={"perplexity": "60%"}, retry=("checkpoint-123456",))
    for table in (night_table(night), catalog_table(training.prefix)):
        said = shown(table, width=80)
        assert "checkpoint-123456" in said
        assert "rejected" in said
        assert "…" not in said


def test_no_catalogue_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no catalogue there"):
        catalog_table(tmp_path)


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▁"), ([0.0, 7.0, 3.0], "▁█▄"), ([1.0, float("nan"), 2.0], "▁!█")],
)
def test_a_sparkline_has_a_bar_for_every_value(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
