"""`svdllm verify` of a checkpoint with the names, shapes and sizes of a compressed Llama-3-70B.

    python -m benchmarks.verify_70b [--layers 80] [--ratio 0.2]

The weight files are sparse: their headers are real, their content is zeros that take no room and
are hashed and read as any other. Prints a row for every check, and the minutes of the hashes alone
and of all, on the clock and of processor time. Exits with 1 if a check has failed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from pipeline.cli.tables.run import check_table
from pipeline.plan.flops import rank_at
from pipeline.stages.assemble import write_around
from pipeline.stages.weight_files import plan_file, plan_parts
from runtime.configuration_lowrank import Matrix
from schemas.model.spec import ModelSpec
from schemas.result.manifest import FileEntry, Manifest
from schemas.result.output import OutputFile
from schemas.run.identity import Identities
from workers.checkpoint.names import CONFIG
from workers.checkpoint.verify import verify_checkpoint
from workers.model.inspection import planned
from workers.output import outline
from workers.storage.files import sha256_of
from workers.storage.tensorfile import write_shapes

SHAPES = Path(__file__).parents[1] / "tests/configs/llama-3-70b.json"


def plan_files(spec: ModelSpec, cuts: dict[str, Matrix]) -> list[OutputFile]:
    """The weight files, with pivoted factors for the decoder's matrices."""
    sizes = {m.name: m.stored_parameters("pivoted", cuts[m.name].rank) for m in spec.matrices}
    parts = plan_parts(spec, sizes)
    return [plan_file(spec, part, cuts, dict.fromkeys(cuts, "")) for part in parts]


class Spent(NamedTuple):
    """Seconds on the clock, and of the processors for this process and its children."""

    clock: float
    processors: float

    @classmethod
    def now(cls) -> "Spent":
        return cls(time.perf_counter(), sum(os.times()[:4]))

    def __str__(self) -> str:
        since = Spent.now()
        clock, processors = since.clock - self.clock, since.processors - self.processors
        return f"{clock / 60:.1f} minutes, {processors / 60:.1f} of processor time"


def write_checkpoint(folder: Path, layers: int, ratio: float) -> str:
    """All of it. Returns what it takes to hash its files."""
    config = json.loads(SHAPES.read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
    (folder / CONFIG).write_text(json.dumps(config))
    spec = planned(config, str(SHAPES), "BF16")
    cuts = {
        matrix.name: Matrix(matrix.encoding("pivoted"), rank_at(matrix, 1 - ratio, pivoted=True))
        for matrix in spec.matrices
    }
    plans = plan_files(spec, cuts)
    for plan in plans:
        write_shapes(folder / plan.name, outline(plan))
    write_around(folder, folder, {}, cuts, plans)
    files, start = sorted(path.name for path in folder.iterdir()), Spent.now()
    sums = sha256_of(folder, files)
    spent = str(start)
    sizes = {name: (folder / name).stat().st_size for name in files}
    manifest = Manifest(
        output="sparse",
        identities=Identities(forward="", backward=None, bases="", factors=""),
        base_files={},
        versions={},
        files={name: FileEntry(sha256=sums[name], bytes=sizes[name]) for name in files},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return spent


def main() -> None:
    """Write the checkpoint, verify it, say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work_dir) as name:
        folder = Path(name)
        hashes = write_checkpoint(folder, options.layers, options.ratio)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        start = Spent.now()
        checks = verify_checkpoint(folder, published=False)
        spent = str(start)
    console = Console(width=100)
    console.print(check_table(checks))
    console.print(f"{size / 1e9:.1f} GB: {spent}; its hashes alone, before: {hashes}")
    sys.exit(any(check.passed is False for check in checks))


if __name__ == "__main__":
    main()
