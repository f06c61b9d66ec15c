"""A whole run on SmolLM2: ours on one and on two workers, and the recipe of SVD-LLM.

    python -m benchmarks.whole_run

Ours is the default method with every stage from inspection to verification, each worker on one
thread. SVD-LLM (arXiv 2403.07378) is a plain loop in one process with a thread for every core, as
its published code goes layer by layer: X^T X of the inputs of every matrix in float32, Cholesky
factor and inverse in float64, SVD of W S in float32, factors saved. Same text, windows and ratio.
Ours takes gradients as well, which SVD-LLM does not know.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.fresh import in_fresh_process
from benchmarks.timing import interleave
from pipeline.cli.demo_inputs import fetch_model, write_texts
from pipeline.compress import compress
from pipeline.request.inputs import gather
from pipeline.request.preflight import look
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig
from workers.model.carving import Carved
from workers.model.layers import Decoder

OURS = "ours, 2 workers"
Seconds = dict[str, float]


def main() -> None:
    """Run every contender in a fresh process, in turn; print where the time went."""
    options = _parse()
    fetch_model(options.work_dir / "SmolLM2-135M-Instruct")
    write_texts(options.work_dir / "text")
    contenders: dict[str, Callable[[], Seconds]] = {
        OURS: partial(_scratched, options, ours, 2),
        "ours, 1 worker": partial(_scratched, options, ours, 1),
        "SVD-LLM (W), one process": partial(_scratched, options, svd_llm, 1),
    }
    timings = interleave(contenders, options.rounds)
    table = Table("seconds", title=_title(options))
    for name in contenders:
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(stage for found in timings.results.values() for stage in found):
        cells = (timings.results[name].get(stage) for name in contenders)
        table.add_row(stage, *("" if cell is None else f"{cell:.1f}" for cell in cells))
    table.add_section()
    table.add_row("process, start to end", *(f"{timings.seconds(name):.1f}" for name in contenders))
    table.add_row(f"time / {OURS}", *(f"{timings.ratio(name, OURS):.2f}" for name in contenders))
    Console(width=110).print(table)


def ours(config: RunConfig) -> Seconds:
    """Seconds of every stage of a run."""
    return {str(name): seconds for name, seconds in compress(config).seconds.items()}


@torch.no_grad()
def svd_llm(config: RunConfig) -> Seconds:
    """Seconds of every part of the published loop."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    inputs, seconds = gather(look(config)), Seconds()
    decoder = Decoder(inputs.folder, inputs.spec, torch.float32, torch.device("cpu"))
    hidden = [window[None] for window in inputs.forward]
    factors: dict[str, Tensor] = {}
    for index in range(inputs.spec.layers):
        with _timed(seconds, "load"):
            part = decoder.part(range(index, index + 1))
        with _timed(seconds, "calibrate forward"):
            hidden = hidden if index else [part.embed(tokens) for tokens in hidden]
            grams, hidden = _observe(part, index, hidden)
        for name, gram in grams.items():
            with _timed(seconds, "factorise"):
                root = torch.linalg.cholesky(_definite(gram.double()))
                inverse = torch.linalg.inv(root)
            weight: Any = part.layers[index].get_submodule(name).weight
            with _timed(seconds, "truncate"):
                a, b = _cut(weight, root.float(), inverse.float(), config.ratio[0])
                factors |= {f"{index}.{name}.up": a, f"{index}.{name}.down": b}
    with _timed(seconds, "assemble"):
        torch.save(factors, f"{config.output}.pt")
    return seconds


def _observe(
    part: Carved, index: int, hidden: list[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """X^T X of the inputs of every matrix of a layer, each for itself, and the rows after it."""
    grams: dict[str, Tensor] = {}

    def hook(name: str, args: tuple[Tensor, ...]) -> None:
        rows = args[0].float().flatten(0, -2)
        grams[name] = grams.get(name, 0) + rows.T @ rows

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: hook(name, args))
        for name, module in part.layers[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
    after = [part.layer(index, rows) for rows in hidden]
    for handle in handles:
        handle.remove()
    return grams, after


def _definite(gram: Tensor) -> Tensor:
    """The Gram, shifted past its least eigenvalue if a Cholesky factor fails."""
    if not int(torch.linalg.cholesky_ex(gram).info):
        return gram
    shift: Tensor = 1e-6 - torch.linalg.eigvalsh(gram)[0]
    return gram + shift * torch.eye(len(gram)).to(gram)


def _cut(weight: Tensor, root: Tensor, inverse: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    U, s, Vt = torch.linalg.svd(weight @ root, full_matrices=False)
    rank = int(weight.numel() * (1 - ratio) / sum(weight.shape))
    scale = s[:rank].sqrt().diag()
    return U[:, :rank] @ scale, scale @ (Vt[:rank] @ inverse)


@contextmanager
def _timed(seconds: Seconds, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _scratched(
    options: argparse.Namespace, call: Callable[[RunConfig], Seconds], workers: int
) -> Seconds:
    """`call` in a fresh process, on a run directory of its own."""
    with tempfile.TemporaryDirectory(dir=options.work_dir) as scratch:
        config = RunConfig(
            model=str(options.work_dir / "SmolLM2-135M-Instruct"),
            output=Path(scratch) / "compressed",
            ratio=(options.ratio,),
            calibration=CalibrationConfig(
                text=str(options.work_dir / "text" / "calibration.txt"),
                samples=options.samples,
                sequence_length=options.length,
                gradient_samples=options.gradient_samples,
                gradient_length=options.gradient_length,
            ),
            cluster=ClusterConfig(workers=workers),
        )
        return in_fresh_process(call, config)


def _title(options: argparse.Namespace) -> str:
    forward = f"{options.samples} x {options.length}"
    backward = f"{options.gradient_samples} x {options.gradient_length}"
    return f"SmolLM2-135M, {options.ratio:.0%} removed; {forward} tokens, gradients of {backward}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--gradient-samples", type=int, default=16)
    parser.add_argument("--gradient-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
