"""`svdllm verify` of a checkpoint with the names, shapes and sizes of a compressed Llama-3-70B.

    python -m benchmarks.verify_70b [--layers 80] [--ratio 0.2]

The weight files are sparse: their headers are real, their content is zeros that take no room and
are hashed and read as any other. Prints a row for every check, and the minutes of the hashes alone
and of all, on the clock and of processor time. Exits with 1 if a check has failed.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from pipeline.cli.tables.run import check_table
from pipeline.plan.flops import rank_at
from runtime.configuration_lowrank import FORMAT, guarded, tensor_shapes
from schemas.model.dtypes import ITEM_BYTES
from schemas.model.spec import ModelSpec
from schemas.result.manifest import FileEntry, Manifest
from schemas.run.identity import Identities
from workers.checkpoint.family import family
from workers.checkpoint.names import INDEX, weight_file
from workers.checkpoint.own_code import shipped
from workers.checkpoint.verify import verify_checkpoint
from workers.model.inspection import planned
from workers.storage.files import sha256_of

SHAPES = Path(__file__).parents[1] / "tests/configs/llama-3-70b.json"
FILE_BYTES = 5 * 10**9

Entries = dict[str, tuple[str, tuple[int, ...]]]


def entries(spec: ModelSpec, ranks: dict[str, int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor, with pivoted factors for the decoder's matrices."""
    matrices = {matrix.stored: matrix for matrix in spec.matrices}
    for tensor in spec.tensors:
        owner, _, _ = tensor.name.rpartition(".")
        if (matrix := matrices.get(owner)) is None:
            yield tensor.name, tensor.dtype, tensor.shape
            continue
        shape = (matrix.out_features, matrix.in_features)
        for leaf, size in tensor_shapes("pivoted", ranks[matrix.name], *shape, bias=False).items():
            yield f"{owner}.{leaf}", "I64" if leaf == "order" else tensor.dtype, size


def write_sparse(folder: Path, tensors: Iterator[tuple[str, str, tuple[int, ...]]]) -> None:
    """Files of up to FILE_BYTES, and the index of them."""
    files: list[Entries] = [{}]
    room = FILE_BYTES
    for name, dtype, shape in tensors:
        room -= math.prod(shape) * ITEM_BYTES[dtype]
        if room < 0 and files[-1]:
            files.append({})
            room = FILE_BYTES - math.prod(shape) * ITEM_BYTES[dtype]
        files[-1][name] = (dtype, shape)
    listed: dict[str, str] = {}
    for number, content in enumerate(files):
        path = folder / weight_file(number, len(files))
        _write_file(path, content)
        listed |= dict.fromkeys(content, path.name)
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))


def _write_file(path: Path, content: Entries) -> None:
    header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, (dtype, shape) in content.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


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
    spec, names = planned(config, str(SHAPES), "BF16"), family(config, str(SHAPES))
    ranks = {matrix.name: rank_at(matrix, 1 - ratio, pivoted=True) for matrix in spec.matrices}
    write_sparse(folder, entries(spec, ranks))
    stored = {name: {"encoding": "pivoted", "rank": rank} for name, rank in ranks.items()}
    config |= names.entries | {"low_rank": {"format": FORMAT, "matrices": stored}}
    (folder / "config.json").write_text(json.dumps(guarded(config)))
    for name, content in shipped(names).items():
        (folder / name).write_bytes(content)
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
