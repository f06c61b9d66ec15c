"""One decoder layer of Llama-3-70B's shape through every step of a worker, on a few cores or a GPU.

    python -m benchmarks.layer_70b [--scale 0.25] [--only mlp.down_proj] [--device cuda]

A checkpoint of one random bf16 layer goes through the code of the actor: load, both calibration
streams and their moments, the bases of the matrices with the weights still there, their factors
without, and the written file; no file if only one matrix is asked for. The vocabulary is small,
one entry for each token of a stream, so that no row comes twice. Embeddings are correlated: a
random product of low rank, plus noise. Peaks are of anonymous
memory, sampled every few milliseconds: no page is touched faster. Those of a smaller scale are
extrapolated with its square, all but what was there at the start; that is too much if
activations count, which grow with the scale itself. On a GPU the
layer computes in bf16, and each step's peak there is in a column of its own.
"""

import argparse
import logging
import math
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.fresh import in_fresh_process
from benchmarks.watch import Watch
from pipeline.stages.factorise import root_groups
from pipeline.stages.weight_files import plan_file, plan_parts
from pipeline.stream.schedule import micro_batches
from schemas.model.spec import ModelSpec, TensorSpec
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, NumericsConfig
from schemas.result.output import MatrixResult
from schemas.run.identity import Identities
from schemas.run.moments import Pass, taps
from workers.allocation.budget import rank_within
from workers.checkpoint.names import WEIGHTS
from workers.checkpoint.tensors import TensorReader
from workers.compressor import Compressor
from workers.model.inspection import inspect, read_spec
from workers.model.layers import Decoder
from workers.model.shard import Shard
from workers.output import write_file
from workers.process.devices import find_device
from workers.pruner import Pruner
from workers.storage.keys import factors_key
from workers.storage.moments import commit_moment
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store
from workers.storage.tensorfile import Entry, write_tensors

PASSES: tuple[Pass, ...] = ("forward", "backward")


def save_layer(folder: Path, scale: float, vocabulary: int, device: str) -> None:
    """A checkpoint of one layer, a tensor in memory at a time, drawn on a device."""
    heads = int(64 * scale)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128 * heads,
        intermediate_size=448 * heads,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads // 8,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    tensors = read_spec(str(folder), None).tensors
    content = [Entry(t.name, torch.bfloat16, t.shape, partial(_drawn, t, device)) for t in tensors]
    write_tensors(folder / WEIGHTS, content)


def _drawn(tensor: TensorSpec, device: str) -> Tensor:
    if len(tensor.shape) == 1:
        return torch.ones(tensor.shape, dtype=torch.bfloat16)
    rows, width = tensor.shape
    if tensor.role == "embedding":
        return _correlated(rows, width, device)
    drawn = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    return (drawn / math.sqrt(width)).cpu()


def _correlated(rows: int, width: int, device: str) -> Tensor:
    drawn = partial(
        torch.randn, generator=torch.Generator(device).manual_seed(0), device=torch.device(device)
    )
    mixing = drawn(width // 8, width) * (width // 8) ** -0.5
    found: Tensor = drawn(rows, width // 8) @ mixing
    found += 0.1 * drawn(found.shape)
    return found.bfloat16().cpu()


class Layer:
    """One layer on its way through a worker, in a run directory of its own."""

    def __init__(self, options: argparse.Namespace, folder: Path, watch: Watch) -> None:
        self._options, self._folder, self._watch = options, folder, watch
        self._device = find_device(options.device)
        self._spec = inspect(folder)
        self._config = RunConfig(
            model=str(folder),
            output=folder.parent / "compressed",
            ratio=(options.ratio,),
            calibration=CalibrationConfig(text="synthetic", sequence_length=options.length),
            numerics=NumericsConfig(threads=options.threads),
        )
        self._ids = Identities(
            forward="forward", backward="backward", bases="bases", factors="factors"
        )
        matrices = self._spec.matrices
        self._matrices = tuple(m for m in matrices if options.only in (None, m.path))
        if not self._matrices:
            raise SystemExit(f"no matrix {options.only}")
        self._store = Store(self._config.run_folder)
        self._shard: Shard | None = None
        self._tensors = TensorReader(folder, self._spec)
        self._compressor = Compressor(
            self._config,
            self._spec,
            self._tensors,
            self._ids,
            self._device,
            lambda matrix: self._shard.weight(matrix) if self._shard is not None else None,
        )

    def run(self) -> None:
        """Every step, in the order of a run."""
        self._calibrate()
        for group in root_groups(self._config.truncation, self._matrices):
            paths = " and ".join(matrix.path for matrix in group)
            with self._watch.step(f"factorise {paths}"):
                self._compressor.factorise(group)
        names = {matrix.name for matrix in self._matrices}
        for neurons in self._spec.neurons:
            if neurons.within(names):
                with self._watch.step(f"order {neurons.count} neurons"):
                    Pruner(self._compressor).order(neurons)
        self._shard = None
        results = self._truncate()
        if len(results) == len(self._spec.matrices):
            self._write(results)

    def _calibrate(self) -> None:
        found = taps(self._matrices, self._config.truncation, gradients=True)
        with self._watch.step("load"):
            dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
            decoder = Decoder(self._folder, self._spec, dtype, self._device)
            shard = self._shard = Shard(decoder, range(1), taps=found)
        for direction in PASSES:
            with self._watch.step(f"calibrate {direction}"):
                self._stream(shard, direction)
            with self._watch.step(f"commit {direction}"):
                for tap, sums in shard.take_sums(direction):
                    commit_moment(self._store, self._ids, tap, sums)

    def _stream(self, shard: Shard, direction: Pass) -> None:
        length = self._options.length
        windows = torch.arange(self._options.tokens // length * length).view(-1, length)
        for batch in micro_batches(
            windows.to(self._device), self._options.batch, self._config.calibration.segments
        ):
            if direction == "forward":
                shard.forward(batch.tokens, batch.step, "moments")
                continue
            output = shard.forward(batch.tokens, batch.step, "gradient")
            shard.backward(shard.loss_gradient(output, batch.step, 0), batch.step)

    def _truncate(self) -> dict[str, MatrixResult]:
        results = {}
        for matrix in self._matrices:
            loss, _ = read_spectrum(self._store, self._ids, matrix)
            rank = rank_within(loss, self._config.factors, (1 - self._options.ratio) * matrix.size)
            if rank is None:
                raise SystemExit("nothing to cut: raise --ratio")
            with self._watch.step(f"truncate {matrix.path} at {rank}"):
                record = self._compressor.truncate(matrix, rank)
            results[matrix.name] = MatrixResult.model_validate(record.facts)
        return results

    def _write(self, results: dict[str, MatrixResult]) -> None:
        parameters = {name: result.parameters for name, result in results.items()}
        keys = {
            name: factors_key(self._ids, name, rank)
            for name, result in results.items()
            if (rank := result.rank) is not None
        }
        for part in plan_parts(self._spec, parameters):
            with self._watch.step(f"write {part.name}"):
                plan = plan_file(self._spec, part, results, keys)
                write_file(self._store, self._tensors, f"outputs/{part.name}", plan)


def run_layer(options: argparse.Namespace, folder: Path) -> Watch:
    """All steps in this process."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.linalg.eigh(torch.eye(64, device="cuda", dtype=torch.float64))  # its library loads
    watch = Watch()
    Layer(options, folder, watch).run()
    return watch


def main() -> None:
    """Make the checkpoint, run it through, print every step."""
    options = _parse()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # nothing large stays with the allocator
    with tempfile.TemporaryDirectory(dir=options.work_dir) as scratch:
        folder = Path(scratch) / "layer"
        in_fresh_process(save_layer, folder, options.scale, options.tokens, options.device)
        spec: ModelSpec = inspect(folder)
        watch: Watch = in_fresh_process(run_layer, options, folder)
    on_gpu = options.device == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{options.threads} threads"
    title = f"One layer, hidden {spec.hidden_size}, {options.tokens} tokens"
    table = Table("step", title=f"{title}, {where}")
    for heading in ("seconds", "peak, MB", "at full scale, GB", *(["on the GPU, GB"] * on_gpu)):
        table.add_column(heading, justify="right")
    full = []
    for step in watch.steps:
        full.append(watch.start + (step.peak - watch.start) / options.scale**2)
        cells = [f"{step.seconds:.1f}", f"{step.peak / 1e6:,.0f}", f"{full[-1] / 1e9:.1f}"]
        table.add_row(step.name, *cells, *([f"{step.on_gpu / 1e9:.1f}"] * on_gpu))
    table.add_section()
    total, peak = sum(step.seconds for step in watch.steps), max(step.peak for step in watch.steps)
    cells = [f"{total:.1f}", f"{peak / 1e6:,.0f}", f"{max(full) / 1e9:.1f}"]
    largest = max(step.on_gpu for step in watch.steps)
    table.add_row("all", *cells, *([f"{largest / 1e9:.1f}"] * on_gpu))
    Console(width=100).print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--scale", type=float, default=1.0, help="of every width; eighths")
    parser.add_argument("--only", help="one matrix, as mlp.down_proj; all seven unless given")
    parser.add_argument("--tokens", type=int, default=4096, help="in each stream")
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences computed at once")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
