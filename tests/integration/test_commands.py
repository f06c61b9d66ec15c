"""The command line as a user runs it: what it prints, and the code it ends with."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from pipeline.compress import compress
from schemas.result.evaluation import EvaluationReport
from schemas.run.record import RunRecord
from tests.documents import ROOT
from tests.integration import processes
from tests.integration.conftest import Reference
from tests.integration.support import (
    KINDS,
    copy_packages,
    file_sums,
    flags,
    item_attempts,
    item_sums,
    weight_sums,
)
from tests.items import file_of, local
from tests.models import tiny_model
from workers.storage.files import file_sha256
from workers.storage.places import files_below
from workers.storage.store import Store
from workers.storage.tensorfile import entries

SVDLLM = (str(Path(sys.executable).with_name("svdllm")),)
PYTHON = (sys.executable, "-m", "pipeline")


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    command = processes.run([*map(str, arguments)])
    return command.code or 0, command.printed, command.log


def run_cold(
    *arguments: object, command: tuple[str, ...] = PYTHON, folder: Path = ROOT
) -> tuple[int, str, str]:
    """The same of a command line that starts as a user's does."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(local_ray: None) -> list[str]:
    """Settings that make a command join the Ray of the tests, which is faster than its own."""
    return ["--set", f"cluster.address={ray.get_runtime_context().gcs_address}"]


@pytest.fixture
def copied(reference: Reference, tmp_path: Path) -> Path:
    """The checkpoint of `reference`, to be changed."""
    return Path(shutil.copytree(reference.output.path, tmp_path / "checkpoint"))


def test_a_finished_run_is_not_done_again(reference: Reference, here: list[str]) -> None:
    run_dir = reference.config.run_folder
    output, items = file_sums(local(reference.output.path)), item_attempts(run_dir, *KINDS)
    code, _, log = run(*flags(reference.config), *here)
    assert code == 0, log
    assert f"{reference.output.path}: already there, nothing to do" in log
    assert file_sums(local(reference.output.path)) == output
    assert item_attempts(run_dir, *KINDS) == items


def test_a_finished_run_whose_run_directory_is_gone_makes_none(
    reference: Reference, tmp_path: Path
) -> None:
    asked = reference.config.model_copy(update={"run_dir": tmp_path / "run"})
    assert compress(asked).outputs[0].path == reference.output.path
    assert not (tmp_path / "run").exists()


def test_an_output_of_another_ratio_is_refused(reference: Reference, here: list[str]) -> None:
    before = weight_sums(local(reference.output.path))
    other = reference.config.model_copy(update={"ratio": (0.4,)})
    code, _, log = run(*flags(other), *here)
    assert code == 2, log
    assert "holds a checkpoint of another model, text, method, ratio or setting" in log
    assert weight_sums(local(reference.output.path)) == before


def test_more_workers_than_cpus_are_refused(
    reference: Reference, here: list[str], tmp_path: Path
) -> None:
    cluster = reference.config.cluster.model_copy(update={"workers": 5})
    update = {"output": tmp_path / "out", "cluster": cluster}
    code, _, log = run(*flags(reference.config.model_copy(update=update)), *here)
    assert code == 2, log
    assert "cluster.workers is 5" in log
    assert "the Ray cluster has room for 3" in log
    assert list(tmp_path.iterdir()) == []


def test_another_identity_is_refused_with_what_differs(
    reference: Reference, here: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference.config.run_folder, run_dir)
    update = {"output": tmp_path / "out", "run_dir": run_dir}
    asked = [*flags(reference.config.model_copy(update=update)), "--seed", "1", *here]
    code, _, log = run(*asked)
    assert code == 2, log
    assert "seed: 0 -> 1" in log
    assert item_sums(run_dir, *KINDS) == item_sums(reference.config.run_folder, *KINDS)
    code, _, log = run(*asked, "--fresh")
    assert code == 0, log
    assert f"kept as {run_dir}.1" in log
    kept = item_sums(tmp_path / "run.1", *KINDS)
    assert kept == item_sums(reference.config.run_folder, *KINDS)
    assert not kept.keys() & item_sums(run_dir, "moments").keys()


def test_status_counts_what_is_there(reference: Reference, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference.config.run_folder, run_dir)
    moments, bases, neurons, factors = (
        sorted(item_sums(run_dir, kind)) for kind in ("moments", "bases", "neurons", "factors")
    )
    store = Store(run_dir)
    cut = file_of(store, moments[0])
    cut.write_bytes(cut.read_bytes()[:-1])
    file_of(store, bases[0]).unlink()
    store.forget(factors[0])
    code, printed, log = run("status", run_dir)
    assert code == 0, log
    done = {stage: int(count) for stage, count in re.findall(r"│ (\w+) +│ +(\d+) │", printed)}
    assert done["forward"] + done["backward"] == len(moments) - 1
    assert done["factorise"] == len(bases) - 1 + len(neurons)
    assert done["truncate"] == len(factors) - 1


def test_verify_accepts_what_compress_wrote(reference: Reference) -> None:
    code, printed, log = run("verify", reference.output.path)
    assert code == 0, log
    assert "FAILED" not in printed
    assert "not judged" not in printed


def test_verify_does_not_run_code_that_was_changed(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for path in copied.glob("*.py"):
        with path.open("a") as file:
            file.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    code, printed, log = run("verify", copied)
    assert code == 3, printed
    assert "modeling_lowrank.py: changed" in log
    assert "configuration_lowrank.py: changed" in log
    assert not marker.exists()


def test_verify_does_not_run_the_code_of_a_stranger(copied: Path, tmp_path: Path) -> None:
    """Its checksums hold: whoever wrote the code wrote the manifest as well."""
    marker, code_file = tmp_path / "ran", copied / "modeling_lowrank.py"
    before = file_sha256(code_file)
    with code_file.open("a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    manifest = json.loads((copied / "manifest.json").read_text())
    entry = manifest["files"][code_file.name]
    assert entry["sha256"] == before
    entry |= {"sha256": file_sha256(code_file), "bytes": code_file.stat().st_size}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, printed, log = run("verify", copied)
    assert code == 3, printed
    assert "modeling_lowrank.py is not the code that this version of the program ships" in log
    assert not marker.exists()


def test_verify_misses_the_mark_of_success(copied: Path) -> None:
    (copied / "_SUCCESS").unlink()
    code, printed, log = run("verify", copied)
    assert code == 3, printed
    assert "success marker (absent)" in log


def test_evaluate_writes_its_figures(reference: Reference, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    asked = ("--text", text, "--sequence-length", 64, "--windows", 2, "--json", path)
    code, printed, log = run(
        "evaluate", reference.output.path, "--baseline", reference.config.model, *asked
    )
    assert code == 0, log
    dense, small = EvaluationReport.model_validate_json(path.read_bytes()).models
    done = reference.output.compression
    assert (dense.parameters, small.parameters) == (done.parameters_before, done.parameters_after)
    assert dense.predicted_tokens == small.predicted_tokens == 2 * 63
    for model in (dense, small):
        assert f"{model.perplexity:.2f}" in printed


def test_what_a_stopped_request_has_left_is_removed(reference: Reference, tmp_path: Path) -> None:
    """Weight files that were not published, and what training would have gone on from."""
    folder = tmp_path / "run"
    shutil.copytree(local(reference.config.run_folder), folder)
    [identity] = RunRecord.model_validate_json((folder / "run.json").read_bytes()).outputs.values()
    Store(folder).commit(f"outputs/{identity}/model.safetensors", entries({"a": torch.zeros(1)}))
    (folder / "training/state").mkdir(parents=True)
    elsewhere = {"output": tmp_path / "other", "run_dir": folder, "ratio": (0.5,)}
    compress(reference.config.model_copy(update=elsewhere))
    assert not [name for name in files_below(folder) if "outputs/" in name]
    assert not (folder / "training").exists()


def test_help_names_every_command() -> None:
    code, printed, _ = run_cold("--help", command=SVDLLM)
    assert code == 0
    for command in ("compress", "plan", "evaluate", "verify", "status", "demo"):
        assert f" {command} " in printed


def test_a_bare_working_directory_is_enough(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    asked = ("plan", "--model", model, "--ratio", "0.2,0.4")
    # Machines that are described: what this host has free changes from one call to the next.
    machines = ("--gpus", 2, "--gpu-type", "h100", "--host-memory", "1TB")
    bare = run_cold(*asked, *machines, folder=copy_packages(tmp_path / "bare"))
    assert bare == run(*asked, *machines)
    assert bare[0] == 0, bare
    assert "2 workers of 2, h100" in bare[1]
