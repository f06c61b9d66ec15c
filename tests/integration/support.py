"""What the integration tests share: one small request, and what a run left on disk."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from schemas.location import Location
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig
from schemas.result.manifest import Compression, OutputResult
from schemas.run.identity import Record
from tests.documents import ROOT
from tests.items import local
from workers.storage.files import file_sha256
from workers.storage.store import Store

PACKAGES = ("schemas", "workers", "pipeline", "runtime")
KINDS = ("moments", "bases", "spectra", "neurons", "factors")  # of items
_HANG_S = 1800.0  # half of what a test may take
CALIBRATION: dict[str, Any] = {
    "samples": 8,
    "sequence_length": 64,
    "gradient_samples": 8,
    "gradient_length": 64,
    "segments": 4,
}


def copy_packages(folder: Path) -> Path:
    """The packages alone in a new `folder`, as the working directory of a Ray job has them."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def ask(model: Path, text: Path, output: Path, **fields: Any) -> RunConfig:
    """A request of a few hundred tokens on one CPU worker; `fields` are of `RunConfig`.

    `workers` and the fields of `CALIBRATION` may be given among them.
    """
    calibration = CALIBRATION | {key: fields.pop(key) for key in CALIBRATION if key in fields}
    cluster = ClusterConfig(workers=fields.pop("workers", 1), device="cpu")
    defaults: dict[str, Any] = {
        "model": str(model),
        "output": output,
        "ratio": 0.3,
        "calibration": CalibrationConfig(text=str(text), **calibration),
        "cluster": cluster,
    }
    return RunConfig(**(defaults | fields))


def flags(config: RunConfig) -> list[str]:
    """The command line that asks for what `ask` gave."""
    text = config.calibration
    found = ["compress", "--model", config.model, "--output", str(config.output)]
    found += ["--ratio", ",".join(map(str, config.ratio)), "--method", config.method]
    found += ["--calibration", ",".join(text.text), "--calibration-samples", str(text.samples)]
    found += ["--sequence-length", str(text.sequence_length)]
    found += ["--gradient-samples", str(text.gradient_samples)]
    found += ["--gradient-length", str(text.gradient_length)]
    found += ["--set", f"calibration.segments={text.segments}"]
    found += ["--device", config.cluster.device]
    found += ["--workers", str(config.cluster.workers)] if config.cluster.workers else []
    return found + (["--run-dir", str(config.run_dir)] if config.run_dir else [])


def weight_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a checkpoint."""
    found = {path.name: file_sha256(path) for path in folder.glob("*.safetensors")}
    assert found, f"no weights in {folder}"
    return found


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def item_sums(run_dir: Location, *prefixes: str) -> dict[str, str]:
    """SHA-256 of every committed item below the prefixes, by key."""
    return {record.key: record.sha256 for record in _items(run_dir, prefixes)}


def item_attempts(run_dir: Location, *prefixes: str) -> dict[str, str]:
    """The attempt that made every committed item below the prefixes, by key: one that is made anew
    has another.
    """
    return {record.key: record.attempt for record in _items(run_dir, prefixes)}


def _items(run_dir: Location, prefixes: tuple[str, ...]) -> list[Record]:
    return [record for prefix in prefixes for record in Store(run_dir).records(prefix)]


def kl(output: OutputResult) -> float:
    """KL of a result from its base, in nats a token; the run must have compared them."""
    assert output.evaluation
    value = output.evaluation.models[1].kl
    assert value is not None
    return value


def headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor in the safetensors files of a folder, from their headers."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        table.pop("__metadata__", None)
        for name, entry in table.items():
            found[name] = (str(entry["dtype"]), tuple(entry["shape"]))
    return found


def until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as `condition` holds, however busy the machine is; fail if it hangs.

    A condition fails by itself if what it waits for has ended without it.
    """
    start = before = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < start + _HANG_S, f"not within {_HANG_S:g} s: {what}"
        time.sleep(max(0.005, 9 * (now - before)))  # what it looks at needs the processors, too
        before = time.monotonic()


def read_compression(output: OutputResult) -> Compression:
    """compression.json, which is also what `compress` returned."""
    found = Compression.model_validate_json((local(output.path) / "compression.json").read_bytes())
    assert found == output.compression
    return found


def registered(training: Path) -> int:
    """The step of the last checkpoint that Ray Train knows of."""
    for path in training.glob("*/checkpoint_manager_snapshot.json"):
        with contextlib.suppress(ValueError):  # it is just being written
            last = json.loads(path.read_text())["latest_checkpoint_result"]
            return int(last["metrics"]["step"]) if last else 0
    return 0


def require_same(one: OutputResult, other: OutputResult) -> None:
    """The same weights, trained by the same looks."""
    assert weight_sums(local(one.path)) == weight_sums(local(other.path))
    mine, theirs = one.compression.recovery, other.compression.recovery
    assert mine is not None
    assert theirs is not None
    assert mine.looks == theirs.looks


def require_only_factors_differ(one: OutputResult, other: OutputResult) -> set[str]:
    """The names of the other's tensors, among which are all of the one."""
    before, after = (load_file(local(o.path) / "model.safetensors") for o in (one, other))
    changed = {name for name in before if not before[name].equal(after[name])}
    pruned = {f"model.{m.name}.dense.weight" for m in other.compression.matrices if m.is_pruned}
    assert {name.split(".")[-2] for name in changed - pruned} == {"up", "down"}
    assert changed > pruned > set()
    return set(after)
