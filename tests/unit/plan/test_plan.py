"""Layer shards, waves, replicas and costs from shapes alone, and what is refused."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import pipeline.plan.machines
from pipeline.cli.app import app
from pipeline.plan.flops import rank_at
from pipeline.plan.machines import Machines, on_cpu
from pipeline.plan.planner import make_plan, plan_checkpoint, require_disk
from pipeline.request.flags import build
from schemas.errors import ConfigError
from schemas.model.spec import Factors, ModelSpec, factor_parameters
from schemas.request.config import RunConfig
from schemas.request.sizes import parse_size
from schemas.run.moments import taps
from schemas.run.plan import ClusterSpec, Plan
from tests.models import tiny_model
from workers.checkpoint.config_file import read_spec
from workers.checkpoint.contents import inspect
from workers.process.logs import log

ROOT = Path(__file__).parents[3]
SHAPES = ROOT / "tests" / "configs"
NAMES = sorted(path.stem for path in SHAPES.glob("*.json"))
H100: dict[str, Any] = {"gpus": 8, "gpu_memory": "80GB", "host_memory": "1TB", "gpu_type": "h100"}


class Base(NamedTuple):
    folder: Path
    spec: ModelSpec

    def config(self, **fields: Any) -> RunConfig:
        given = {"model": str(self.folder), "output": "out", "ratio": [0.2, 0.5]} | fields
        return RunConfig.model_validate(given)

    def plan(self, workers: int = 2, **fields: Any) -> Plan:
        config = self.config(**fields)
        return make_plan(config, self.spec, on_cpu(config.numerics.dtype, workers, 10**12))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("base"), num_hidden_layers=7)
    return Base(folder, inspect(folder))


def planned(name: str, flags: dict[str, Any] | None = None, **machines: Any) -> Plan:
    """The plan of one of the shipped shapes on described GPUs."""
    given = {"model": str(SHAPES / f"{name}.json"), "ratio": 0.2, "output": Path("out")}
    return plan_checkpoint(build(RunConfig, given | (flags or {})), Machines(**(H100 | machines)))


def layers(plan: Plan) -> list[int]:
    return [layer for shard in plan.shards for layer in shard.range]


@pytest.mark.parametrize("workers", range(1, 8))
def test_shards_are_contiguous_complete_and_even(base: Base, workers: int) -> None:
    plan = base.plan(workers)
    sizes = [len(shard.range) for shard in plan.shards]
    # A fifth and a sixth worker lengthen the chain, but leave it a shard of two layers.
    assert len(plan.shards) == plan.workers == {5: 4, 6: 4}.get(workers, workers)
    assert layers(plan) == list(range(7))
    assert max(sizes) - min(sizes) <= 1


def test_parameters_are_those_of_the_files(base: Base) -> None:
    tensors = load_file(base.folder / "model.safetensors")
    linear = [t.numel() for name, t in tensors.items() if name.endswith("_proj.weight")]
    plan = base.plan()
    assert plan.total_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert plan.targeted_parameters == sum(linear)


def test_a_ratio_is_of_the_targeted_parameters(base: Base) -> None:
    plan = base.plan()
    for one, ratio in zip(plan.ratios, (0.2, 0.5), strict=True):
        removed = plan.targeted_parameters * ratio
        assert one.ratio == ratio
        assert one.targeted_parameters == pytest.approx(plan.targeted_parameters - removed, abs=1)
        assert one.total_parameters == pytest.approx(plan.total_parameters - removed, abs=1)


@pytest.mark.parametrize("method", ["two-sided", "svd-llm", "svd-llm-v2"])
def test_moments_are_those_of_the_taps(base: Base, method: str) -> None:
    config, plan = base.config(method=method), base.plan(1, method=method)
    found = taps(base.spec.matrices, config.truncation, config.needs_gradients)
    sizes = {"forward": 0, "backward": 0}
    for tap in found:
        sizes[tap.direction] += 4 * tap.size**2 if tap.moment else 0
    assert plan.memory.forward_moments == sizes["forward"]
    assert plan.memory.backward_moments == sizes["backward"]
    assert plan.memory.sums == 3 * max(sizes.values())
    assert plan.disk.moments == sum(sizes.values())


def test_more_workers_need_less_memory_each(base: Base) -> None:
    one, many = base.plan(1).memory, base.plan(7).memory
    assert many.weights < one.weights
    assert many.forward_moments == pytest.approx(one.forward_moments / 7)


def test_outputs_take_less_than_the_base_each(base: Base) -> None:
    plan = base.plan()
    whole = (base.folder / "model.safetensors").stat().st_size
    assert 1.0 * whole < plan.disk.outputs < 2 * whole  # at 0.2 and 0.5
    assert plan.disk.outputs == pytest.approx(
        sum(4 * ratio.total_parameters for ratio in plan.ratios), abs=8
    )


@pytest.mark.parametrize(("asked", "workers"), [(3, 3), (20, 7)])
def test_no_shard_is_without_a_layer(base: Base, asked: int, workers: int) -> None:
    plan = plan_checkpoint(base.config(cluster={"workers": asked}), Machines())
    assert len(plan.shards) == workers


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("two-sided", {"q": 32, "k": 16, "gate": 32, "down": 32}),
        ("svd-llm", {"q": 32, "k": 32, "gate": 32, "down": 80}),
    ],
)
def test_a_moment_is_no_larger_than_the_method_needs(
    base: Base, method: str, sizes: dict[str, int]
) -> None:
    """The smaller side of W, but the papers' methods are defined on the whole X^T X."""
    config = base.config(method=method)
    matrices = {m.path.rpartition(".")[2].removesuffix("_proj"): m for m in base.spec.matrices}
    found = {
        name: max(
            tap.size for tap in taps((matrices[name],), config.truncation, config.needs_gradients)
        )
        for name in sizes
    }
    assert found == sizes


def test_shard_layers_caps_a_shard(base: Base) -> None:
    plan = base.plan(2, cluster={"shard_layers": 2})
    assert max(len(shard.range) for shard in plan.shards) == 2
    assert [len(wave) for wave in plan.waves] == [2, 2]
    assert layers(plan) == list(range(7))


def test_replicas_are_one_on_the_cpu_unless_asked_for(base: Base) -> None:
    assert base.plan(6).replicas == 1
    plan = base.plan(6, cluster={"replicas": 2})
    assert (plan.replicas, plan.chain) == (2, 3)
    with pytest.raises(ConfigError, match="ask for 2 at most"):
        base.plan(2, cluster={"replicas": 3})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("memory", ["140GB", "80GB", "48GB", "40GB"])
def test_a_plan_covers_the_model_once_within_its_memory(name: str, memory: str) -> None:
    plan = planned(name, gpu_memory=memory, host_memory="2TB")
    assert layers(plan) == list(range(len(layers(plan))))
    assert plan.memory.device <= 0.9 * plan.cluster.device_memory
    assert plan.memory.host <= plan.cluster.host_memory
    assert plan.workers <= plan.cluster.workers
    assert sum(len(wave) for wave in plan.waves) == len(plan.shards)


def test_less_memory_takes_more_waves_and_more_time() -> None:
    plans = [planned("llama-3-70b", gpu_memory=f"{size}GB") for size in (80, 32, 16, 10)]
    waves = [len(plan.waves) for plan in plans]
    seconds = [plan.seconds or 0.0 for plan in plans]
    assert waves[0] == 1
    assert waves == sorted(set(waves))
    assert seconds == sorted(set(seconds))
    assert plans[0].disk.boundaries == 0 < plans[-1].disk.boundaries
    loads = [plan.stages[1].read_bytes for plan in plans]
    assert loads[0] < loads[1] < 2 * loads[0]  # each wave again on the way back, but the last


def test_more_gpus_are_faster() -> None:
    seconds = [planned("llama-3-70b", gpus=gpus).seconds or 0.0 for gpus in (2, 4, 8, 16, 32)]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize(("method", "kinds"), [("svd-llm", 1), ("svd-llm-v2", 2)])
def test_the_svds_of_the_papers_are_bound_by_memory(method: str, kinds: int) -> None:
    """6 m n^2 + 20 n^3 of every W, and 9 n^3 of every X^T X, at 0.3 flop a byte of 3.35 TB/s."""
    spec = read_spec(str(SHAPES / "llama-3-70b.json"), None)
    shapes = [sorted((m.out_features, m.in_features)) for m in spec.matrices]
    svd = sum(6 * large * small**2 + 20 * small**3 for small, large in shapes)
    eigen = sum(9 * m.in_features**3 for m in spec.matrices)
    stages = {stage.name: stage for stage in planned("llama-3-70b", {"method": method}).stages}
    seconds = stages["factorise"].seconds or {}
    assert seconds["SVD"] == pytest.approx(svd / 8 / (0.3 * 3.35e12))
    solvers = {"SVD": svd, "eigensolver": eigen}
    found = {name: value for name, value in seconds.items() if name in solvers}
    assert len(found) == kinds
    for name, value in found.items():
        assert value == pytest.approx(solvers[name] / 8 / (0.3 * 3.35e12))
    assert 0 < (stages["truncate"].seconds or {})["float64"] < seconds["SVD"]


def test_bases_that_are_not_kept_take_their_svd_again() -> None:
    flags = {"method": "svd-llm", "settings": ["cluster.keep_bases=false"], "ratio": "0.2,0.4"}
    stages = {stage.name: stage.seconds or {} for stage in planned("llama-3-8b", flags).stages}
    assert stages["truncate"]["SVD"] == pytest.approx(2 * stages["factorise"]["SVD"])


def test_storage_is_one_for_the_whole_cluster() -> None:
    """More nodes read and write no faster; the network of a node bounds what it gets of it."""

    def disk(gpus: int, **flags: str) -> dict[str, float]:
        plan = planned("llama-3-70b", flags, gpus=gpus)
        return {stage.name: (stage.seconds or {}).get("disk", 0.0) for stage in plan.stages}

    one, two = disk(8), disk(16)
    assert two["factorise"] == pytest.approx(one["factorise"])
    assert two["truncate"] == pytest.approx(one["truncate"])
    twice = disk(8, storage_read="12GB", storage_write="6GB")
    assert twice["factorise"] == pytest.approx(one["factorise"] / 2)
    wire = {"storage_read": "1TB", "storage_write": "1TB"}
    assert disk(16, **wire)["truncate"] == pytest.approx(disk(8, **wire)["truncate"] / 2)
    size = planned("llama-3-70b").stages[0].read_bytes
    assert disk(16, **wire)["inspect"] == pytest.approx(size / 25e9)  # one node


def test_what_is_assumed_is_said() -> None:
    given = planned("llama-3-8b", {"storage_read": "12GB", "storage_write": "1.5GB"})
    said = " ".join(given.assumed)
    assert "12 GB/s to read (--storage-read) and 1.5 GB/s to write (--storage-write)" in said
    assert "host memory" not in said
    described = planned("llama-3-8b", host_memory=None, gpu_type=None)
    assert described.assumed == ("128 GB of host memory a GPU (--host-memory)",)
    assert described.cluster.host_memory == 128 * 10**9
    assert planned("llama-3-8b", host_memory=None, gpus_per_node=4).cluster.host_memory == 128e9


@pytest.mark.parametrize(
    ("name", "ratio", "loaded"),
    [("llama-3-405b", 0.2, 0.03), ("llama-3-70b", 0.2, 0.07), ("llama-3-8b", 0.6, 1.0)],
)
def test_verify_reads_a_large_model_once_and_two_layers(
    name: str, ratio: float, loaded: float
) -> None:
    """`loaded` is the part of it that is read again; nothing but a very small model is written."""
    plan = planned(name, {"ratio": ratio})
    [verify] = [stage for stage in plan.stages if stage.name == "verify"]
    assert verify.read_bytes / plan.disk.outputs == pytest.approx(1 + loaded, abs=0.01)
    assert verify.written_bytes == 0


def test_stages_add_up_and_the_bottleneck_is_one_of_them() -> None:
    plan = planned("llama-3-70b")
    assert plan.seconds == pytest.approx(sum(stage.total or 0.0 for stage in plan.stages))
    longest = max(plan.stages, key=lambda stage: stage.total or 0.0)
    assert plan.bottleneck == f"{longest.name}: {longest.limit}"


def test_flops_of_a_70b_are_those_of_the_design() -> None:
    """By hand: forward 7.2e16, moments 2.3e16 at 524,288 tokens, 86 GB of them."""
    plan = planned("llama-3-70b")
    flops = {stage.name: stage.flops for stage in plan.stages}
    assert flops["calibrate forward"] == pytest.approx(7.2e16 + 2.3e16, rel=0.01)
    assert plan.memory.forward_moments * 8 == pytest.approx(86e9, rel=0.01)
    assert plan.memory.backward_moments * 8 == pytest.approx(108e9, rel=0.01)


def test_an_unknown_device_has_bytes_and_no_times() -> None:
    known, unknown = planned("llama-3-8b"), planned("llama-3-8b", gpu_type="new")
    assert (unknown.seconds, unknown.bottleneck) == (None, None)
    assert {stage.seconds for stage in unknown.stages} == {None}
    assert unknown.memory == known.memory
    assert unknown.shards == known.shards


def test_the_names_of_torch_find_their_row() -> None:
    config = RunConfig(model="m", output=Path("out"), ratio=(0.2,))
    spec = read_spec(str(SHAPES / "llama-3-8b.json"), None)
    cluster = ClusterSpec(
        workers=8,
        device="cuda",
        device_name="NVIDIA H100 80GB HBM3",
        device_memory=80 * 10**9,
        host_memory=10**12 // 8,
        dtype="bfloat16",
    )
    assert make_plan(config, spec, cluster).seconds == planned("llama-3-8b").seconds


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    plan = planned(name)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("pivoted", [True, False])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.8])
def test_the_rank_that_is_planned_with_is_the_uniform_one(
    base: Base, keep: float, pivoted: bool
) -> None:
    for matrix in base.spec.matrices:
        rank, shape = rank_at(matrix, keep, pivoted), (matrix.out_features, matrix.in_features)
        factors: Factors = "pivoted" if pivoted else "plain"
        assert factor_parameters(factors, rank, *shape) <= keep * matrix.size
        assert factor_parameters(factors, rank + 1, *shape) > keep * matrix.size


# --- what is refused --------------------------------------------------------------------------


REFUSED = [
    ("llama-3-70b", "--gpu-memory 7GB --host-memory 1TB"),
    ("llama-3-70b", "--gpu-memory 48GB --host-memory 1TB --method svd-llm"),
    ("llama-3-70b", "--gpu-memory 80GB --host-memory 40GB"),
    ("llama-3-70b", "--gpu-memory 7GB --host-memory 40GB"),
    ("llama-3-8b", "--gpu-memory 6GB --host-memory 1TB --gradient-length 65536"),
    ("llama-3-8b", "--gpu-memory 6GB --host-memory 1TB --sequence-length 65536"),
    ("qwen3-32b", "--gpu-memory 6GB --host-memory 1TB --set calibration.micro_batch=64"),
    ("llama-3-8b", "--gpu-memory 3700MB --host-memory 1TB --dtype float32"),
]


def plan_command(name: str, flags: str) -> int:
    """The exit code of `svdllm plan` of one of the shipped shapes on eight GPUs."""
    command = ["plan", "--model", str(SHAPES / f"{name}.json"), "--ratio", "0.2", "--gpus", "8"]
    return CliRunner().invoke(app, [*command, *shlex.split(flags)]).exit_code


@pytest.mark.parametrize(("name", "flags"), REFUSED)
def test_every_remedy_works_when_it_is_followed(
    name: str, flags: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "propagate", True)
    require_remedies(name, flags, caplog)


def test_more_host_memory_than_is_assumed_is_a_remedy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer GPUs on a node are none: what is assumed is so much for each."""
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(pipeline.plan.machines, "_HOST_BYTES", 5 * 10**9)
    require_remedies("llama-3-70b", "--gpu-memory 80GB", caplog)
    assert "--host-memory" in caplog.text
    assert "--gpus-per-node" not in caplog.text


def require_remedies(name: str, flags: str, caplog: pytest.LogCaptureFixture) -> None:
    """Fails unless a plan is refused, and each remedy that is named is one."""
    assert plan_command(name, flags) == 2
    (message,) = caplog.messages
    assert re.search(r"a worker takes [\d,]+ bytes of (GPU|host) memory", message)
    remedies = message.partition("What would do: ")[2].split(", or ")
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
    with pytest.raises(ConfigError, match=r"are free; free [\d,]+, or name another --run-dir"):
        require_disk(disk, base.config(), 0)


def test_bases_that_are_not_kept_are_a_remedy_for_a_small_disk(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, frugal = base.plan(), base.plan(cluster={"keep_bases": False})
    free = 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    rest = plan.disk.run_directory - plan.disk.bases
    assert frugal.disk.run_directory == rest
    config = base.config(output=str(base.folder.parent / "out"))
    committed = rest - free  # then there is room for all but the bases
    with pytest.raises(ConfigError, match=r"or --set cluster\.keep_bases=false"):
        require_disk(plan.disk, config, committed)
    with pytest.raises(ConfigError, match=r"another --run-dir or --output$"):
        require_disk(plan.disk, config, committed - 1)


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


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("1.5TB", 15 * 10**11), ("1000", 1000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


# --- the command ------------------------------------------------------------------------------


def test_a_bare_config_is_planned_for_a_described_cluster(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text((SHAPES / "llama-3-70b.json").read_text())
    flags = "--ratio 0.2 --gpus 8 --gpu-memory 80GB --host-memory 1TB --gpu-type h100"
    for model in (path, tmp_path):
        command = ["plan", "--model", str(model), *shlex.split(flags)]
        shown = CliRunner().invoke(app, command, terminal_width=80)
        assert shown.exit_code == 0
        assert "8 layer shards of 10 layers" in shown.stdout
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
    assert len(rows) == 6
    for model, gpus, method, rest in rows:
        flags = f"--ratio 0.2 --method {method} --gpus {gpus} --gpu-type h100"
        command = ["plan", "--model", f"tests/configs/{model.lower()}.json", *shlex.split(flags)]
        shown = " ".join(CliRunner().invoke(app, command).stdout.split())
        time, eigen, svd, size = rest.split(" | ")
        found = dict(re.findall(r"(eigensolver|SVD) ([\d.]+ \w+)", shown))
        assert f"time: about {time} (" in shown
        assert (found.get("eigensolver", "-"), found.get("SVD", "-")) == (eigen, svd)
        assert f"run directory {size} (" in shown


def test_planning_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pipeline.cli, pipeline.plan\n"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
