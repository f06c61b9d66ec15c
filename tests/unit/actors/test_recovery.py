"""What a training worker leaves on its node, and what it finds of an earlier one."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from schemas.errors import RunError, StorageError, StorageFullError
from schemas.request.recovery import RecoveryConfig
from tests.moments import IDS
from tests.recovery import RESULT, group, job_of
from workers.actors import recovery
from workers.actors.recovery import _commit, _restore, recover, temporary
from workers.storage.keys import recovered_key, recovered_norms_key
from workers.storage.store import Store

OF_A_WORKER: Any = {1: (OSError(errno.EIO, "I/O error"), None)}


def test_the_same_request_in_another_run_directory_has_folders_of_its_own(tmp_path: Path) -> None:
    assert temporary(job_of(tmp_path / "one")) == temporary(job_of(tmp_path / "one"))
    assert temporary(job_of(tmp_path / "one")) != temporary(job_of(tmp_path / "other"))


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # of one process
@pytest.mark.parametrize(
    ("damaged", "content"),
    [("__0_0.distcp", b""), (".metadata", b""), ("progress.json", b"{"), ("progress.json", None)],
)
def test_a_damaged_state_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, content: bytes | None
) -> None:
    state = {"weight": torch.ones(4)}
    save(state, checkpoint_id=tmp_path)
    (tmp_path / "progress.json").write_text('{"step": 1, "looks": [], "refined": []}')
    (tmp_path / damaged).unlink()
    if content is not None:
        (tmp_path / damaged).write_bytes(content)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: Checkpoint(str(tmp_path)))
    trainer: Any = SimpleNamespace(state=lambda: state)
    with pytest.raises(RunError, match=f"{tmp_path}: the saved state cannot be read.*; remove it"):
        _restore(trainer)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageFullError),
        (CheckpointException("read", OF_A_WORKER), StorageError),
        (OSError("NETWORK_CONNECTION: the host does not answer"), OSError),
    ],
)
def test_a_state_that_storage_does_not_give_is_not_to_be_removed(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[Exception]
) -> None:
    def fetched() -> Any:
        raise error

    checkpoint = SimpleNamespace(path="s3://runs/state", as_directory=fetched)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: checkpoint)
    trainer: Any = SimpleNamespace()
    with pytest.raises(raised) as caught:
        _restore(trainer)
    assert type(caught.value) is raised
    assert "remove" not in str(caught.value)


def test_norms_that_were_asked_for_are_an_item_also_if_there_are_none(tmp_path: Path) -> None:
    job = job_of(tmp_path / "run", spec=SimpleNamespace(matrices=(), tensors=()))
    asked = RecoveryConfig(enabled=True, norms=True)
    job = job._replace(config=job.config.model_copy(update={"recovery": asked}))
    with group(tmp_path / "group"):
        _commit(job, {}, {})
    record = Store(tmp_path / "run").record(recovered_norms_key("same"))
    assert record is not None
    assert record.facts == {"names": []}


def test_only_the_first_worker_reads_and_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = SimpleNamespace(name="up", layer=0, path="mlp.up")
    spec = SimpleNamespace(matrices=(matrix,), tensors=(), path="layers")
    job = job_of(tmp_path / "run", spec=spec, ranks={"up": 2}, ids=IDS)
    with group(tmp_path / "group"):
        monkeypatch.setattr(dist, "get_rank", lambda: 1)
        _commit(job, {"layers.0.mlp.up.up.weight": torch.ones(4, 2)}, {})
    assert not [*Store(tmp_path / "run").records("")]


def test_what_an_earlier_attempt_has_committed_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "set_up_logging", lambda: None)  # it is this process's
    job = job_of(tmp_path / "run")
    Store(tmp_path / "run").commit(recovered_key("same", None), [], RESULT.model_dump(mode="json"))
    with group(tmp_path / "group"):
        recover({"job": job})  # which says nothing of a model


@pytest.mark.parametrize("room", [2399, 2400])
def test_before_models_are_read_a_state_of_a_node_has_to_fit_its_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(recovery, "set_up_logging", lambda: None)
    rows = {"up": SimpleNamespace(rank=9, parameters=400), "down": SimpleNamespace(rank=None)}
    job = job_of(tmp_path / "run", rows=rows)
    asked = RecoveryConfig(enabled=True)
    job = job._replace(config=job.config.model_copy(update={"recovery": asked}))
    context = SimpleNamespace(get_local_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(recovery, "free_bytes", lambda _: room)
    # Half of 400 parameters, 12 bytes each.
    short = r"takes 2,400 bytes there .* 2,399 are free; .* TMPDIR"
    read = "the models would be read now"
    monkeypatch.setattr(recovery, "_models", lambda _: pytest.fail(read))
    raised, said = (RunError, short) if room == 2399 else (pytest.fail.Exception, read)
    with group(tmp_path / "group"), pytest.raises(raised, match=said):
        recover({"job": job})
