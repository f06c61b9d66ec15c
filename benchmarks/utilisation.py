"""How busy the shards of a chain are while micro-batches stream through them.

    python -m benchmarks.utilisation

A full chain: with c micro-batches and s equal shards, each shard waits for s - 1 of them, so that
it works c / (c + s - 1) of the time.

Measured: real LayerShard actors on this machine. CPU time of the workers, over that of the cores
they could have: each of 4 single-threaded shards on 2 cores has half a core.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.random_llama import save_random_llama
from pipeline.cluster.calls import wait_for
from pipeline.cluster.session import ray_session
from pipeline.progress import Progress
from pipeline.request.inputs import Inputs
from pipeline.run import Run, start
from pipeline.run_directory.ownership import owned
from pipeline.stream.schedule import (
    Batch,
    as_it_is,
    drive,
    micro_batches,
    stream_backward,
    stream_forward,
)
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig
from schemas.run.moments import Pass
from workers.checkpoint.contents import base_files
from workers.model.inspection import inspect
from workers.storage.keys import OWNER

PASSES: tuple[Pass, ...] = ("forward", "backward")


class Used(NamedTuple):
    """Seconds of work that were done, and that could have been."""

    done: float
    possible: float


def measured(options: argparse.Namespace, shards: int) -> Iterator[tuple[Pass, Used]]:
    """Both streams through real shards; what is possible is one core each, while there are any."""
    folder = save_random_llama(
        options.work_dir / f"llama-{options.hidden}-{options.layers}",
        options.hidden,
        options.layers,
    )
    spec, windows = inspect(folder), torch.randint(1024, (options.micro_batches, options.length))
    inputs = Inputs(folder, spec, base_files(folder, spec), windows, windows)
    with tempfile.TemporaryDirectory(dir=options.work_dir) as scratch:
        config = RunConfig(
            model=str(folder),
            output=Path(scratch) / "compressed",
            ratio=(0.2,),
            calibration=CalibrationConfig(text="random tokens"),
            cluster=ClusterConfig(workers=shards),
        )
        progress = Progress()
        with (
            owned(config.run_folder / OWNER, progress.note) as ownership,
            ray_session(config.cluster, config.numerics.threads),
        ):
            run = start(config, inputs, progress, ownership)
            loads = {
                worker.load.remote(shard, [tap for tap in run.taps if tap.layer in shard.range]): ""
                for worker, shard in zip(run.workers, run.plan.shards, strict=True)
            }
            wait_for(loads, run.timeout)
            cores = min(shards, len(os.sched_getaffinity(0)))
            for direction in PASSES:
                yield direction, _measure(run, windows, direction, cores)


def _measure(run: Run, windows: torch.Tensor, direction: Pass, cores: int) -> Used:
    batches = micro_batches(windows, 1, run.config.calibration.segments)
    before, begin = _cpu_seconds(run), time.perf_counter()

    def tokens(batch: Batch) -> torch.Tensor:
        return batch.tokens

    if direction == "forward":
        stream = stream_forward(run.workers, batches, tokens, as_it_is, "moments")
    else:
        stream = stream_backward(run.workers, batches, tokens, as_it_is, as_it_is)
    drive([stream], direction, run.timeout, lambda *_: None)
    seconds = time.perf_counter() - begin
    return Used(_cpu_seconds(run) - before, cores * seconds)


def _cpu_seconds(run: Run) -> float:
    calls = {
        worker.__ray_call__.remote(lambda _: time.process_time()): "CPU time of a worker"
        for worker in run.workers
    }
    found: list[float] = wait_for(calls, run.timeout)
    return sum(found)


def main() -> None:
    """Measure and print."""
    options = _parse()
    count = options.micro_batches
    table = Table("shards", "stream", title=f"Utilisation with {count} micro-batches")
    for heading in ("of a full chain", "measured", f"measured on {os.cpu_count()} cores, s"):
        table.add_column(heading, justify="right")
    for shards in options.shards:
        for direction, used in measured(options, shards):
            table.add_row(
                str(shards),
                direction,
                f"{count / (count + shards - 1):.1%}",
                f"{used.done / used.possible:.1%}",
                f"{used.done:.1f} of {used.possible:.1f}",
            )
    Console(width=100).print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--shards", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--micro-batches", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens in a micro-batch")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
