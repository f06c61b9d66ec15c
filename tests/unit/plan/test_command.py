"""Plans that are refused, with remedies that work, and what the command prints of others."""

import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import pipeline.plan.machines
from pipeline.cli.app import app
from pipeline.plan.machines import on_cpu
from pipeline.plan.planner import make_plan, require_disk
from schemas.errors import ConfigError, DiskError
from schemas.run.plan import Plan
from tests.documents import ROOT
from tests.unit.plan.conftest import SHAPES, Base, planned

# --- what is refused --------------------------------------------------------------------------


REFUSED = [
    ("llama-3-70b", "--gpu-memory 7GB --host-memory 1TB"),
    ("llama-3-70b", "--gpu-memory 32GB --host-memory 1TB --method svd-llm"),
    ("llama-3-70b", "--gpu-memory 80GB --host-memory 40GB"),
    ("llama-3-70b", "--gpu-memory 7GB --host-memory 40GB"),
    ("llama-3-8b", "--gpu-memory 80GB --host-memory 1GB --workers 2"),
    ("llama-3-8b", "--gpu-memory 4GB --host-memory 1TB --gradient-length 8192"),
    (
        "llama-3-8b",
        "--gpu-memory 6GB --host-memory 1TB --sequence-length 8192 --set calibration.micro_batch=8",
    ),
    ("qwen3-32b", "--gpu-memory 6GB --host-memory 1TB --set calibration.micro_batch=64"),
    ("llama-3-8b", "--gpu-memory 3700MB --host-memory 1TB --dtype float32"),
]


def plan_command(name: str, flags: str) -> int:
    """The exit code of `svdllm plan` of one of the shipped shapes on eight GPUs."""
    command = ["plan", "--model", str(SHAPES / f"{name}.json"), "--ratio", "0.2", "--gpus", "8"]
    return CliRunner().invoke(app, [*command, *shlex.split(flags)]).exit_code


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), REFUSED)
def test_every_remedy_works_when_it_is_followed(
    name: str, flags: str, caplog: pytest.LogCaptureFixture
) -> None:
    require_remedies(name, flags, caplog)


@pytest.mark.slow
def test_more_host_memory_than_is_assumed_is_a_remedy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer GPUs on a node are none: what is assumed is so much for each."""
    monkeypatch.setattr(pipeline.plan.machines, "_HOST_BYTES", 5 * 10**9)
    require_remedies("llama-3-70b", "--gpu-memory 80GB", caplog)
    assert "--host-memory" in caplog.text
    assert "--gpus-per-node" not in caplog.text


def require_remedies(name: str, flags: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fails unless a plan is refused, and each remedy that is named is one."""
    assert plan_command(name, flags) == 2
    (message,) = caplog.messages
    assert re.search(r"a worker takes [\d,]+ bytes of (GPU|host) memory", message)
    remedies = message.partition("hat would do: ")[2].split(", or ")
    assert all(remedies)
    for remedy in remedies:
        assert plan_command(name, f"{flags} {remedy}") == 0, remedy


@pytest.mark.parametrize("workers", [1, 4])
def test_a_host_that_is_too_small_is_refused_with_what_would_do(base: Base, workers: int) -> None:
    config = base.config()
    with pytest.raises(ConfigError, match=r"(\d+)GB of memory on the host") as caught:
        make_plan(config, base.spec, on_cpu(config.numerics.dtype, workers, 10**8))
    enough = re.findall(r"(\d+)GB of memory", str(caught.value))[0]
    cluster = on_cpu(config.numerics.dtype, workers, int(enough) * 10**9)
    assert make_plan(config, base.spec, cluster).host_memory <= cluster.host_memory


def test_a_full_disk_is_refused_with_the_bytes_that_are_missing(base: Base) -> None:
    plan = base.plan()
    disk = plan.disk.model_copy(update={"moments": 10**18})
    with pytest.raises(DiskError, match=r"are free; free [\d,]+, or name another --run-dir"):
        require_disk(disk, base.config())


def test_bases_that_are_not_kept_are_a_remedy_for_a_small_disk(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, frugal = base.plan(), base.plan(cluster={"keep_bases": False})
    rest = plan.disk.run_directory - plan.disk.bases
    assert frugal.disk.run_directory == rest
    config = base.config(output=str(base.folder.parent / "out"))

    def require(free: int, published: int = 0) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        require_disk(plan.disk, config, published)

    with pytest.raises(ConfigError, match=r"or --set cluster\.keep_bases=false"):
        require(rest)  # there is room for all but the bases
    with pytest.raises(ConfigError, match=r"another --run-dir or --output$"):
        require(rest - 1)
    for name in ("moments/one", "training/refined/two", "rounds/1/three", "base/four"):
        file = Path(str(config.run_folder / name))
        file.parent.mkdir(parents=True)
        file.write_bytes(b"." * 100)
    require(plan.disk.run_directory - 200)
    with pytest.raises(ConfigError, match="free 1, or name another"):
        require(plan.disk.run_directory - 201)
    require(plan.disk.run_directory - 300, published=100)
    with pytest.raises(ConfigError, match="free 1, or name another"):
        require(plan.disk.run_directory - 301, published=100)


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ({"gpus": None}, "add --gpus N"),
        ({"gpu_memory": None, "gpu_type": None}, "needs their memory; add --gpu-memory"),
        ({"gpu_memory": None, "gpu_type": "new"}, "memory of GPU type 'new' is not known"),
        ({"gpu_memory": "80 pounds"}, "--gpu-memory '80 pounds' is not a size"),
    ],
)
def test_machines_half_described_are_refused(machines: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned("llama-3-8b", **machines)


# --- the command ------------------------------------------------------------------------------


def test_a_bare_config_is_planned_for_a_described_cluster(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text((SHAPES / "llama-3-70b.json").read_text())
    flags = "--ratio 0.2 --gpus 8 --gpu-memory 80GB --host-memory 1TB --gpu-type h100"
    for model in (path, tmp_path):
        command = ["plan", "--model", str(model), *shlex.split(flags)]
        shown = CliRunner().invoke(app, command, terminal_width=80)
        assert shown.exit_code == 0
        assert "16 layer shards of 5 layers" in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 80
        printed = CliRunner().invoke(app, [*command, "--json"])
        assert Plan.model_validate_json(printed.stdout) == planned("llama-3-70b")


def test_the_plan_in_the_docs_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "plan-70b.md").read_text(encoding="utf-8")
    command = re.findall(r"^svdllm (plan .*)$", text, re.MULTILINE)[0]
    shown = CliRunner().invoke(app, shlex.split(command), terminal_width=80)
    assert shown.stdout.rstrip("\n") in text


def test_the_plans_by_method_in_the_docs_are_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "plan-70b.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (Llama-3-\d+B) \| (\d) \| `(.+?)`(?: \(W\))? \| (.+) \|$", text, re.MULTILINE
    )
    assert len(rows) == 8
    for model, gpus, method, rest in rows:
        flags = f"--ratio 0.2 --method {method} --gpus {gpus} --gpu-type h100"
        command = ["plan", "--model", f"tests/configs/{model.lower()}.json", *shlex.split(flags)]
        shown = " ".join(CliRunner().invoke(app, command).stdout.split())
        time, eigen, svd, size = rest.split(" | ")
        found = dict(re.findall(r"(eigensolver|SVD) ([\d.]+ \w+)", shown))
        assert f"time: about {time} (" in shown
        assert (found.get("eigensolver", "-"), found.get("SVD", "-")) == (eigen, svd)
        assert f"run directory {size} (" in shown
