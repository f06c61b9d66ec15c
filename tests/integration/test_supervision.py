"""Faults in the middle of a run: it goes on by itself, and no byte of its result differs."""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from pipeline.compress import compress
from pipeline.progress import Progress, Stage
from pipeline.run import Run
from schemas.errors import ConfigError, QuarantineError, WorkerError
from schemas.model.spec import MatrixSpec
from schemas.request.config import RunConfig
from schemas.result.manifest import Manifest
from schemas.result.report import ReportFacts
from schemas.run.moments import backward_tap
from schemas.run.stages import StageName
from tests.integration.conftest import Reference
from tests.integration.processes import Process, descendants
from tests.integration.support import KINDS, item_attempts, item_sums, until, weight_sums
from tests.items import local
from workers.checkpoint.names import REPORT
from workers.checkpoint.verify import require, verify_checkpoint
from workers.model.inspection import inspect
from workers.storage.keys import basis_key, moment_key, spectrum_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries


class Enough(Exception):  # noqa: N818
    """All that a test looks at is there."""


class Watched(Progress):
    """Does something when a stage that was named starts."""

    def __init__(self, stage: str, act: Callable[[], None], times: int = 1, last: str = "") -> None:
        super().__init__()
        self._stage = stage
        self._act = act
        self._times = times
        self._last = last

    @contextlib.contextmanager
    def stage(
        self, name: StageName, total: int, unit: str, matrices: Iterable[MatrixSpec] = ()
    ) -> Iterator[Stage]:
        if name == self._last:
            raise Enough
        if name == self._stage and self._times:
            self._times -= 1
            self._act()
        with super().stage(name, total, unit, matrices) as stage:
            yield stage


def shards() -> list[Process]:
    """The layer shards of this process's Ray that run now."""
    mine = descendants(os.getpid())
    return [process for process in mine if "ray::LayerShard" in process.name and process.alive]


def newest() -> Process:
    """The layer shard that was started last: those of an earlier start may still be ending."""
    return max(shards(), key=lambda process: process.started)


def send(number: signal.Signals) -> None:
    """A signal to one layer shard."""
    os.kill(newest().pid, number)


@pytest.mark.parametrize("stage", ["calibrate forward", "truncate"])
def test_a_killed_worker_is_replaced_and_no_byte_differs(
    stage: str, config: RunConfig, reference: Reference
) -> None:
    seen: dict[str, str] = {}

    def kill() -> None:
        seen.update(item_attempts(config.run_folder, *KINDS))
        send(signal.SIGKILL)

    progress = Watched(stage, kill)
    compress(config, progress)
    assert weight_sums(local(config.output)) == weight_sums(local(reference.output.path))
    assert sum("a worker died" in line for line in progress.warnings) == 1
    now = item_attempts(config.run_folder, *KINDS)
    assert {key: now[key] for key in seen} == seen  # nothing that was finished was made again
    assert bool(seen) == (stage != "calibrate forward")


def test_a_hung_worker_is_killed_and_replaced(
    config: RunConfig, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped in the stream of gradients, so it says nothing and ends by no request.

    Only there is the deadline short: elsewhere a busy machine may take longer for an item.
    """
    stopped: list[Process] = []

    def timeout(run: Run) -> float:
        return 1.0 if stopped and not progress.warnings else run.config.cluster.item_timeout_s

    def stop() -> None:
        stopped.append(newest())
        send(signal.SIGSTOP)

    progress = Watched("calibrate backward", stop, last="verify")
    monkeypatch.setattr(Run, "timeout", property(timeout))
    with pytest.raises(Enough):
        compress(config, progress)
    written = item_sums(config.run_folder, "outputs")
    assert {Path(key).name: sha256 for key, sha256 in written.items()} == weight_sums(
        local(reference.output.path)
    )
    [line] = [line for line in progress.warnings if "going on from" in line]
    assert re.search(r"calibrate backward: no result within 1 s.*\(1 of 3 losses", line)
    until(lambda: not any(process.alive for process in stopped), "it has been killed")


def test_losses_without_progress_end_the_run(config: RunConfig) -> None:
    """Every start loses a worker before anything is committed."""
    cluster = config.cluster.model_copy(update={"attempts": 2})

    progress = Watched("calibrate forward", lambda: send(signal.SIGKILL), times=2)
    with pytest.raises(WorkerError, match=r"loss 2 in a row without progress.*start the same") as e:
        compress(config.model_copy(update={"cluster": cluster}), progress)
    assert e.value.exit_code == 3
    assert len(progress.warnings) == 1
    assert not item_attempts(config.run_folder, *KINDS)
    until(lambda: not shards(), "every worker of the run has ended")


def test_a_worker_that_cannot_start_ends_the_run_with_what_it_raised(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its constructor fails the same way every time, so a fourth worker would, too."""

    class Unfit:
        def __init__(self, *_: object) -> None:
            raise ModuleNotFoundError("No module named 'safetensors'")

        def prepare(self, *_: object) -> None:
            """What is asked of it first."""

    monkeypatch.setattr("pipeline.cluster.actors.LayerShard", ray.remote(Unfit))
    monkeypatch.setattr("pipeline.supervise._SETTLE_S", 0.0)
    progress = Watched("none", lambda: None)
    with pytest.raises(
        WorkerError, match=r"ModuleNotFoundError: No module named 'safetensors', .* 3 starts"
    ) as caught:
        compress(config, progress)
    assert caught.value.exit_code == 3
    assert len(progress.warnings) == 2
    assert len(set(progress.warnings)) == 1


# --- items that fail again and again ------------------------------------------------------------


BAD = "layers.2.mlp.up_proj"  # shares its root with gate_proj


@pytest.fixture
def poisoned(reference: Reference, tmp_path: Path) -> RunConfig:
    """The run of `reference`, its checkpoint and the bases of one layer still to be made, with a
    gradient moment of one matrix of that layer full of NaN (and its checksum in order)."""
    shutil.copytree(reference.config.run_folder, tmp_path / "out.run")
    config = reference.config.model_copy(update={"output": tmp_path / "out"})
    manifest = Manifest.model_validate_json(
        (local(reference.output.path) / "manifest.json").read_bytes()
    )
    ids, store = manifest.identities, Store(config.run_folder)
    for matrix in inspect(Path(config.model)).matrices:
        if matrix.layer == 2:
            for key in (basis_key(ids, matrix.name), spectrum_key(ids, matrix.name)):
                store.forget(key)
    store.discard(f"factors/{ids.factors}")
    [matrix] = [m for m in inspect(Path(config.model)).matrices if m.name == BAD]
    key = moment_key(ids, backward_tap(matrix, config.truncation))
    tensors = store.load(key).tensors
    store.forget(key)
    store.commit(key, entries(tensors | {"moment": tensors["moment"] * torch.nan}))
    return config


def test_a_matrix_that_cannot_be_cut_fails_the_run_by_name_when_all_else_is_done(
    poisoned: RunConfig, reference: Reference
) -> None:
    with pytest.raises(QuarantineError) as caught:
        compress(poisoned)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(
        "1 item failed, all others of this step are finished: "
        f"factorise {BAD}: {BAD}: a moment holds NaN or Inf; calibrate with --dtype float32. "
    )
    assert "--on-failure keep_dense" in str(caught.value)
    bases = item_sums(poisoned.run_folder, "bases")
    expected = item_sums(reference.config.run_folder, "bases")
    assert {key for key in expected if key not in bases} == {
        key for key in expected if f"/{BAD}." in key
    }
    assert bases == {key: expected[key] for key in bases}
    assert not local(poisoned.output).exists()


def test_when_asked_it_stays_dense_and_the_others_are_cut_more(
    poisoned: RunConfig, reference: Reference
) -> None:
    config = poisoned.model_copy(update={"on_failure": "keep_dense"})
    [output] = compress(config).outputs
    require(verify_checkpoint(local(output.path), published=True), local(output.path))
    done, before = output.compression, reference.output.compression
    assert done.given_up.keys() == {BAD}
    [row] = [row for row in done.matrices if row.name == BAD]
    assert (row.encoding, row.rank, row.parameters) == ("dense", None, row.shape[0] * row.shape[1])
    assert row.fallbacks[0].startswith("kept dense, for it could not be cut: ")
    assert done.targeted_after <= 0.7 * done.targeted_before
    others = [sum(r.parameters for r in c.matrices if r.name != BAD) for c in (done, before)]
    assert others[0] < others[1]
    facts = ReportFacts.model_validate_json((local(output.path) / REPORT).read_bytes())
    assert facts.spectra
    assert not any("kept dense" in line for line in facts.warnings)  # told of the matrix itself
    card = (local(output.path) / "README.md").read_text()
    assert "### Could not be cut" in card
    assert f"- {BAD}: {BAD}: a moment holds NaN" in card
    sums = weight_sums(local(output.path))

    [again] = compress(config).outputs
    assert again.checks == ()  # it is there already
    assert again.compression == done
    assert weight_sums(local(again.path)) == sums
    with pytest.raises(ConfigError, match=rf"{BAD} could not be cut and are dense there"):
        compress(poisoned)
