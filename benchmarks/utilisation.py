"""How busy the shards of a chain are while micro-batches stream through them.

    python -m benchmarks.utilisation

Simulated: the streams of pipeline/stream/schedule.py submit to actors that only keep time. Such
an actor is serial and in order, as Ray's are; a call starts when its actor is free, its argument is
there and the driver has submitted it, and takes 1 (forward) or 3 (backward: forward once more, and
twice that for the gradient). The driver submits at once, and waits where the stream waits.

Measured: real LayerShard actors on this machine. CPU time of the workers, over that of the cores
they could have: each of 4 single-threaded shards on 2 cores has half a core.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.random_llama import save_random_llama
from pipeline.cluster.calls import Actor, wait_for
from pipeline.cluster.session import ray_session
from pipeline.progress import Progress
from pipeline.request.inputs import Inputs
from pipeline.run import Run, start
from pipeline.run_directory.ownership import owned
from pipeline.stream.schedule import (
    Batch,
    Stream,
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
SECONDS: dict[Pass, float] = {"forward": 1.0, "backward": 3.0}


class Used(NamedTuple):
    """Seconds of work that were done, and that could have been."""

    done: float
    possible: float


@dataclass
class Driver:
    """The clock of the process that submits."""

    now: float = 0.0


class Call(NamedTuple):
    """`actor.forward`, to be submitted with `remote`; its result is the time when it is there."""

    actor: "TimedActor"
    seconds: float

    def remote(self, rows: float, *_: object) -> float:
        ready = max(self.actor.free, rows, self.actor.driver.now)
        self.actor.busy += self.seconds
        self.actor.free = ready + self.seconds
        return self.actor.free


@dataclass
class TimedActor:
    """A layer shard that computes nothing."""

    driver: Driver
    free: float = 0.0
    busy: float = 0.0
    forward: Call = field(init=False)
    backward: Call = field(init=False)

    def __post_init__(self) -> None:
        self.forward = Call(self, SECONDS["forward"])
        self.backward = Call(self, SECONDS["backward"])


def simulated(shards: int, count: int, direction: Pass) -> Used:
    """A stream of `count` micro-batches through shards of equal speed."""
    driver = Driver()
    chain = [TimedActor(driver) for _ in range(shards)]
    batches = micro_batches(torch.zeros(count, 1), 1, 8)
    for flight in _stream(chain, batches, direction, lambda _: 0.0):
        driver.now = max(driver.now, flight.reference)
    return Used(sum(actor.busy for actor in chain), shards * max(actor.free for actor in chain))


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
    stream = _stream(run.workers, batches, direction, lambda batch: batch.tokens)
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


def _stream(
    chain: list[Actor], batches: list[Batch], direction: Pass, source: Callable[[Batch], Any]
) -> Stream:
    if direction == "forward":
        return stream_forward(chain, batches, source, as_it_is, "moments")
    return stream_backward(chain, batches, source, as_it_is, as_it_is)


def main() -> None:
    """Simulate, measure, print."""
    options = _parse()
    count = options.micro_batches
    table = Table("shards", "stream", title=f"Utilisation with {count} micro-batches")
    for heading in ("simulated", "measured", f"measured on {os.cpu_count()} cores, s"):
        table.add_column(heading, justify="right")
    for shards in options.shards:
        for direction, used in measured(options, shards):
            model = simulated(shards, count, direction)
            table.add_row(
                str(shards),
                direction,
                f"{model.done / model.possible:.1%}",
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
