"""What nights record and tell, in folders and in object stores."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet  # type: ignore[import-untyped]

from pipeline.cli.tables.nights import catalog_json, catalog_table, night_table, sparkline
from pipeline.nightly import catalog
from schemas.errors import ConfigError
from schemas.location import Url
from schemas.request.nightly import CatalogRow
from tests.nights import cut_short, kill, pointed
from tests.tables import shown
from tests.unit.nightly.conftest import Training, did
from workers.storage.places import exists, files_below, read_bytes, upload, write


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


def test_source_prefix_and_runs_can_be_in_a_store(training: Training, url: Url) -> None:
    for number in (9, 10):
        for path in training.step(number).iterdir():
            upload(path, url / "source" / f"checkpoint-{number}" / path.name)
    places = {"watch": str(url / "source"), "output": url / "out", "run_dir": url / "runs"}
    training.prefix = url / "out"  # type: ignore[assignment]
    assert did(training.night(**places, max=1)) == [("started", "10"), ("published", "10")]
    assert pointed(url / "out") == {"0.20": "checkpoint-10"}
    assert did(training.night(**places, keep=1)) == [
        *(("started", "9"), ("published", "9"), ("removed", "9")),
    ]
    assert did(training.night(**places, keep=1)) == []
    assert files_below(url / "runs") == {}
    (removed,) = {row.path for row in training.rows if row.event == "removed"}
    assert not exists(url / "out" / str(removed) / "_SUCCESS")
    half = read_bytes(url / "source" / "checkpoint-9" / "model.safetensors")[:-1]
    write(url / "source" / "checkpoint-11" / "model.safetensors", half)
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


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([1.0], "▁"), ([0.0, 7.0, 3.0], "▁█▄"), ([1.0, float("nan"), 2.0], "▁!█")],
)
def test_a_sparkline_has_a_bar_for_every_value(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
