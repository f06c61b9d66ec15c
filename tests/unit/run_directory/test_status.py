"""What `svdllm status` counts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run_directory.status import read_status
from schemas.errors import ConfigError
from schemas.location import Url
from schemas.run.record import RunRecord
from workers.storage.keys import RUN_RECORD, spectrum_key
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
