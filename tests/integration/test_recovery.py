"""Factors that are trained: better than those that were cut, and the same after a kill."""

import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from pipeline.compress import compress
from pipeline.progress import Progress, Stage
from pipeline.recover import recover
from pipeline.request.flags import command_of
from schemas.errors import RunError
from schemas.request.adoption import AdoptionConfig
from schemas.request.config import RunConfig
from schemas.request.groups import EvaluationTextConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.result.manifest import OutputResult
from schemas.run.record import RunRecord
from svdllm import load
from tests.integration.processes import Start, kill_training_workers
from tests.integration.support import (
    ask,
    kl,
    registered,
    require_only_factors_differ,
    require_same,
    until,
    weight_sums,
)
from tests.items import damage, file_of, local
from tests.models import tiny_model
from tests.tables import printed
from workers.checkpoint.published import read_compression, read_manifest
from workers.checkpoint.verify import require, verify_checkpoint
from workers.storage.keys import recovered_key
from workers.storage.store import Store

STEPS = 12
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated")  # Ray Data's own settings


@pytest.fixture(scope="module")
def config(local_ray: None, text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that cuts and compares."""
    folder = tmp_path_factory.mktemp("recovery")
    return ask(
        tiny_model(folder / "model"),
        text,
        folder / "cut",
        ratio=0.4,
        run_dir=folder / "run",
        evaluation=EvaluationTextConfig(text=str(text), sequence_length=64, windows=8),
    )


def asking(config: RunConfig, name: str) -> RunConfig:
    """The same run with trained factors, in a run directory of its own."""
    recovery = RecoveryConfig(
        enabled=True,
        sequence_length=64,
        batch=2,
        tokens=STEPS * 2 * 64,
        learning_rate=1e-3,
        evaluations=STEPS // 2,
        held_out=4,
    )
    folder = local(config.run_folder)
    places = {"output": folder.parent / name, "run_dir": folder.parent / f"{name}.run"}
    refinement = RefinementConfig(enabled=True, windows=3, passes=2)
    return config.model_copy(update={"refinement": refinement, "recovery": recovery, **places})


def going_on(config: RunConfig, name: str) -> RunConfig:
    """The same, where everything has been cut."""
    asked = asking(config, name)
    shutil.copytree(config.run_folder, asked.run_folder)
    return asked


def trained(asked: RunConfig, progress: Progress | None = None) -> OutputResult:
    """The checkpoint of that run."""
    [output] = compress(asked, progress).outputs
    with pytest.raises(ValueError, match="AutoscalingCoordinator"):  # else it asks on for ever
        ray.get_actor("AutoscalingCoordinator", "AutoscalingCoordinator")
    return output


@pytest.fixture(scope="module")
def uncompared(config: RunConfig) -> RunConfig:
    """A run that only cuts."""
    return config.model_copy(update={"evaluation": EvaluationTextConfig()})


@pytest.fixture(scope="module")
def cut(config: RunConfig) -> OutputResult:
    return compress(config).outputs[0]


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, cut: OutputResult) -> OutputResult:
    return trained(going_on(config, "trained"))


def test_trained_factors_are_nearer_to_the_base(
    cut: OutputResult, undisturbed: OutputResult
) -> None:
    found = undisturbed.compression.recovery
    assert cut.compression.recovery is None
    assert found is not None
    held_out = [look.held_out or 0.0 for look in found.looks]
    assert held_out[found.best] == found.after == min(held_out)
    assert [look.step for look in found.looks] == [0, *range(0, STEPS + 1, 2)]
    assert held_out[1] < held_out[0]  # after refinement
    assert len(found.refined) == 2
    assert kl(undisturbed) < kl(cut)
    assert undisturbed.compression.matrices == cut.compression.matrices
    require_only_factors_differ(cut, undisturbed)
    assert "held-out text" in (local(undisturbed.path) / "README.md").read_text()
    assert 'id="recovery"' in (local(undisturbed.path) / "report.html").read_text()


def test_updates_are_trained_by_ray_and_added_to_the_factors(
    config: RunConfig, cut: OutputResult
) -> None:
    asked = going_on(config, "updated")
    update = {"method": "svd-llm", "lora_rank": 2, "tokens": 24 * 2 * 64, "evaluations": 6}
    update["objective"] = "kl"  # a random model keeps nothing of what the text itself teaches
    recovery = RecoveryConfig.model_validate(asked.recovery.model_dump() | update)
    asked = asked.model_copy(update={"recovery": recovery, "refinement": RefinementConfig()})
    [output] = compress(asked).outputs
    found = output.compression.recovery
    assert found is not None
    assert [(look.phase, look.step) for look in found.looks] == [
        *((0, step) for step in range(0, 13, 4)),
        *((1, step) for step in range(16, 25, 4)),
    ]
    assert found.best > 3  # so both factors have updates
    assert {m.name: m.rank for m in output.compression.matrices} == {
        m.name: m.rank for m in cut.compression.matrices
    }
    assert not any("lora" in name for name in require_only_factors_differ(cut, output))
    before, after = (load(local(one.path)).model for one in (cut, output))
    tokens = torch.arange(32)[None]
    assert not torch.equal(before(input_ids=tokens).logits, after(input_ids=tokens).logits)


class DriverError(Exception):
    """A driver ends here."""


def test_what_is_trained_is_cut_again_and_trained_again(config: RunConfig) -> None:
    asked = asking(config, "rounds")
    short = {"tokens": 4 * 2 * 64, "evaluations": 2, "norms": True}
    recovery = asked.recovery.model_copy(update=short)
    alone = {"refinement": RefinementConfig(), "evaluation": EvaluationTextConfig(text="none")}
    asked = asked.model_copy(update={"recovery": recovery, "rounds": 2, "ratio": (0.6,), **alone})
    progress, first = Progress(), local(asked.run_folder) / "rounds/1/checkpoint"

    def stop(stage: Stage) -> None:
        if stage.name == "truncate" and (first / "_SUCCESS").exists() and stage.done:
            raise DriverError

    progress.watchers.append(stop)
    with pytest.raises(DriverError):
        compress(asked, progress)
    before = weight_sums(first)
    again, seen = Progress(), list[Stage]()
    again.watchers.append(seen.append)
    [output] = compress(asked, again).outputs
    assert weight_sums(first) == before
    assert len({id(stage) for stage in seen if stage.name == "recover"}) == 1
    assert len(again.ended["inspect"]) == 1  # of the last round alone
    place, made, found = local(output.path), read_compression(first), output.compression
    assert (made.ratio, found.ratio, found.cut_before) == (0.3675, 0.6, (0.3675,))
    assert made.removed == pytest.approx(0.3675, abs=0.01)
    assert found.removed == pytest.approx(0.6, abs=0.01)
    assert found.model == made.model == config.model
    assert found.adopted == read_manifest(first).output
    assert found.recovery is not None
    assert found.earlier == (made.recovery,)
    assert read_manifest(place).base_files == read_manifest(first).base_files
    require(verify_checkpoint(place, published=True), place)
    base, one, two = (
        load_file(p / "model.safetensors") for p in (Path(config.model), first, place)
    )
    norms = {name for name in base if "norm" in name}
    changed = {name for name in base.keys() & two.keys() if not base[name].equal(two[name])}
    assert changed == norms
    assert all(not one[name].equal(base[name]) for name in norms)
    assert all(not two[name].equal(one[name]) for name in norms)
    assert "all at once with the norms" in (place / "README.md").read_text()
    assert "in 2 rounds: 36.75 %, then 60.00 %" in (place / "README.md").read_text()
    assert "--rounds 2" in (place / "report.html").read_text()


def test_a_base_teaches_once_and_is_forgotten(config: RunConfig, undisturbed: OutputResult) -> None:
    folder = local(asking(config, "trained").run_folder)
    record = RunRecord.model_validate_json((folder / "run.json").read_bytes())
    [teach] = [stage for stage in record.plan.stages if stage.name == "teach"]
    tokens = (STEPS * 2 + 4) * 64  # what is trained on, and what is held out
    assert teach.written_bytes == tokens * 32 * 4
    assert record.ids.taught is not None
    assert not list((folder / "records/boundaries").glob(f"{record.ids.taught}/**/*.json"))


@pytest.mark.usefixtures("waits_for_reader")
def test_training_workers_that_are_killed_change_nothing(
    uncompared: RunConfig, undisturbed: OutputResult
) -> None:
    progress, left = Progress(), [1, 2 + STEPS // 2]  # after a refined layer, and half of the steps
    cluster = uncompared.cluster.model_copy(update={"attempts": 2})  # as many without progress

    def kill(stage: Stage) -> None:
        if stage.name == "recover" and stage.done in left:
            left.remove(stage.done)
            assert kill_training_workers()

    progress.watchers.append(kill)
    asked = going_on(uncompared, "killed").model_copy(update={"cluster": cluster})
    again = trained(asked, progress)
    assert not left
    assert any("it got further" in warning for warning in progress.warnings)
    require_same(again, undisturbed)


def test_what_a_killed_driver_has_trained_is_not_trained_again(
    uncompared: RunConfig,
    undisturbed: OutputResult,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = going_on(uncompared, "continued")
    training = local(asked.run_folder) / "training"
    command = start(command_of(asked)[1:], program=("-m", "tests.integration.halted"))
    until(lambda: command.going and registered(training) > 0, "a checkpoint of some steps")
    command.lose_host()
    assert command.wait() == -signal.SIGKILL
    with caplog.at_level(logging.INFO):
        again = trained(asked)
    steps = [int(step) for step in re.findall(r"recover: step (\d+):", caplog.text)]
    assert 0 < steps[0] < steps[-1] == STEPS
    assert not training.exists()
    require_same(again, undisturbed)


def test_a_damaged_factor_that_was_trained_is_trained_anew(
    uncompared: RunConfig, undisturbed: OutputResult, tmp_path: Path
) -> None:
    asked = asking(uncompared, "trained")
    shutil.copytree(asked.run_folder, tmp_path / "run")
    asked = asked.model_copy(update={"output": tmp_path / "output", "run_dir": tmp_path / "run"})
    identity, store = read_manifest(local(undisturbed.path)).output, Store(asked.run_folder)
    factors = (row.name for row in undisturbed.compression.matrices if row.encoding != "dense")
    key = recovered_key(identity, next(factors))
    damage(file_of(store, key))
    with pytest.raises(RunError, match=rf"{re.escape(key)}: .* start the same command again"):
        compress(asked)
    store.commit(f"outputs/{identity}/model.safetensors", [])  # of the factors that were damaged
    [again] = compress(asked).outputs
    require_same(again, undisturbed)


def test_a_finished_checkpoint_is_trained_as_if_its_run_went_on(
    config: RunConfig,
    cut: OutputResult,
    undisturbed: OutputResult,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(local(config.run_folder), ignore_errors=True)
    asked = asking(config, "adopted")
    shared = ("output", "refinement", "recovery", "evaluation", "cluster")
    fields = {name: getattr(asked, name) for name in shared}
    request = AdoptionConfig(checkpoint=cut.path, base=config.model, **fields)
    [output] = recover(request).outputs
    found, folder = output.compression, local(output.path)
    assert found.matrices == cut.compression.matrices
    assert found.bytes_after == cut.compression.bytes_after
    assert found.adopted == read_manifest(cut.path).output
    assert weight_sums(folder) == weight_sums(local(undisturbed.path))
    require(verify_checkpoint(folder, published=True), folder)
    assert 0 < kl(output) < kl(cut)
    spectra = [
        json.loads((p / "report.json").read_text())["spectra"] for p in (folder, local(cut.path))
    ]
    assert spectra[0] == spectra[1] != []
    assert "those of a finished checkpoint" in (folder / "README.md").read_text()
    as_file = tmp_path / "asked.yaml"
    as_file.write_text(request.model_dump_json(exclude_unset=True))
    with caplog.at_level(logging.INFO):
        assert f"{output.path}" in printed("recover", cut.path, "--config", as_file)
    assert f"{output.path}: already there, nothing to do" in caplog.text
    assert read_compression(output.path) == found
