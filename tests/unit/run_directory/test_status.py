"""What `svdllm status` counts."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run_directory.ownership import owned
from pipeline.run_directory.status import read_status
from schemas.errors import ConfigError
from schemas.location import Url
from schemas.run.record import Activity, RunRecord
from workers.storage.keys import OWNER, RUN_RECORD, spectrum_key
from workers.storage.places import write
from workers.storage.store import Store
from workers.storage.tensorfile import entries


def test_without_bases_a_factorised_matrix_is_one_with_a_spectrum(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    ran, run_dir = record(cluster={"keep_bases": False}), tmp_path / "run"
    write(run_dir / RUN_RECORD, ran.model_dump_json().encode())
    key = spectrum_key(ran.ids, "layers.0.mlp.up_proj")
    Store(run_dir).commit(key, entries({"eigenvalues": torch.zeros(1)}))
    done = {stage.name: (stage.done, stage.total) for stage in read_status(run_dir).stages}
    assert done["factorise"] == (1, 14)


def activity(written: datetime, **fields: Any) -> bytes:
    """progress.json of a driver that wrote it then."""
    last = Activity(
        stage="truncate",
        done=3,
        total=210,
        unit="matrices",
        tokens_per_second=None,
        spent={},
        left=7200.0,
        warnings=(),
        error=None,
        written=written.isoformat(timespec="seconds"),
    )
    return last.model_copy(update=fields).model_dump_json().encode()


def test_a_driver_that_was_killed_has_ended_and_nothing_is_left(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    run_dir = tmp_path / "run"
    write(run_dir / RUN_RECORD, record().model_dump_json().encode())
    program = (
        "import sys; from pathlib import Path; from pipeline.run_directory.ownership import take;"
        "take(Path(sys.argv[1]), print)"
    )
    subprocess.run([sys.executable, "-c", program, str(run_dir / OWNER)], check=True)
    write(run_dir / "progress.json", activity(datetime.now(UTC)))
    found = read_status(run_dir)
    assert found.owner.endswith(", which has ended")
    assert found.activity is not None
    assert (found.activity.done, found.activity.left) == (3, None)


def test_a_driver_that_starts_again_has_not_failed(
    tmp_path: Path, record: Callable[..., RunRecord]
) -> None:
    run_dir = tmp_path / "run"
    write(run_dir / RUN_RECORD, record().model_dump_json().encode())
    failed = activity(datetime.now(UTC) - timedelta(hours=1), error="workers died")
    write(run_dir / "progress.json", failed)
    with owned(run_dir / OWNER, pytest.fail):
        now = read_status(run_dir)
        assert (now.owner.endswith("which has ended"), now.activity) == (False, None)
        write(run_dir / "progress.json", activity(datetime.now(UTC) + timedelta(seconds=1)))
        again = read_status(run_dir).activity
        assert again is not None
        assert again.left == 7200.0


def test_a_run_that_has_no_plan_yet_is_one(tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "1.json").write_text("{}")
    with pytest.raises(ConfigError, match="a run has begun there, and made no plan"):
        read_status(tmp_path)


def test_a_run_in_rounds_says_where_the_last_begun_of_them_is(tmp_path: Path) -> None:
    for number in range(1, 12):
        (tmp_path / f"rounds/{number}/run").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"an earlier round comes first, in .*/rounds/11/run$"):
        read_status(tmp_path)


def test_a_prefix_of_a_store_without_a_run_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"run\.json: not there; not a run directory"):
        read_status(Url("memory://bucket/nothing"))
