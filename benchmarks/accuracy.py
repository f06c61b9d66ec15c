"""Perplexity of every method at several ratios, over several seeds: the table of the README.

    python -m benchmarks.accuracy --model DIR --calibration TEXT --evaluation TEXT --work-dir DIR

Each cell is what these two commands print, for a method, a ratio and a seed:

    svdllm compress --model DIR --output OUT --ratio 0.2,0.4 --method METHOD --seed SEED \\
        --calibration TEXT --calibration-samples 64 --sequence-length 1024
    svdllm evaluate OUT/ratio-0.20 --text TEXT --sequence-length 1024 --windows 16

The methods of a seed share one run directory, so moments that two of them need are accumulated
once.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pipeline.compress import compress
from pipeline.evaluate import evaluate
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import AllocationConfig, CalibrationConfig, ClusterConfig
from schemas.request.methods import METHODS, TITLES, Method
from schemas.result.evaluation import ModelEvaluation
from workers.process.logs import set_up_logging

_WINDOWS = 16


class Scored(NamedTuple):
    """One checkpoint: what its run predicted, in nats a token, and what was measured."""

    method: Method
    ratio: float
    removed: float
    predicted: float | None
    measured: float
    perplexity: float


def main() -> None:
    """Compress with every method and seed, evaluate every result, print one table."""
    options = _parse()
    set_up_logging()
    dense = score(options.model, options.evaluation, _WINDOWS)
    found = [
        scored
        for seed in options.seed
        for method in options.method
        for scored in _scores(options, method, seed, dense)
    ]
    name, seeds = Path(options.model).name, ", ".join(map(str, options.seed))
    table = Table(title=f"{name}: perplexity (dense {dense.perplexity:.2f}), seeds {seeds}")
    table.add_column("method")
    headings = ("asked", "removed", "nats predicted", "measured", "perplexity", "each", "spread")
    for heading in headings:
        table.add_column(heading, justify="right")
    for method in options.method:
        for ratio in options.ratio:
            mine = [one for one in found if (one.method, one.ratio) == (method, ratio)]
            table.add_row(TITLES[method], f"{ratio:.0%}", *_cells(mine))
    Console(width=120).print(table)


def _scores(
    options: argparse.Namespace, method: Method, seed: int, dense: ModelEvaluation
) -> Iterator[Scored]:
    for output in compress(_config(options, method, seed)).outputs:
        scored = score(str(output.path), options.evaluation, _WINDOWS)
        yield Scored(
            method,
            output.ratio,
            output.compression.removed,
            output.compression.nats,
            scored.mean_nll - dense.mean_nll,
            scored.perplexity,
        )


def _cells(scores: list[Scored]) -> list[str]:
    """Means over the seeds, each perplexity, and the largest less the smallest of them."""
    each = [one.perplexity for one in scores]
    predicted = [one.predicted for one in scores if one.predicted is not None]
    return [
        f"{fmean(one.removed for one in scores):.2%}",
        f"{fmean(predicted):.3f}" if predicted else "",
        f"{fmean(one.measured for one in scores):.3f}",
        f"{fmean(each):.2f}",
        ", ".join(f"{value:.2f}" for value in each),
        f"{max(each) - min(each):.2f}",
    ]


def _config(options: argparse.Namespace, method: Method, seed: int) -> RunConfig:
    return RunConfig(
        model=options.model,
        output=options.work_dir / f"{method}-{seed}-{options.rank_multiple}",
        run_dir=options.work_dir / f"run-{seed}",
        ratio=tuple(options.ratio),
        method=method,
        seed=seed,
        allocation=AllocationConfig.model_validate(
            {"method": METHODS[method]["allocation"], "rank_multiple": options.rank_multiple}
        ),
        calibration=CalibrationConfig(text=options.calibration, samples=64, sequence_length=1024),
        cluster=ClusterConfig(workers=options.workers),
    )


def score(checkpoint: str, text: str, windows: int, length: int = 1024) -> ModelEvaluation:
    """The first windows of so many tokens of a text, by one checkpoint in float32."""
    config = EvaluationConfig(
        checkpoint=checkpoint,
        text=text,
        sequence_length=length,
        windows=windows,
        sample_tokens=1,
    )
    return evaluate(config).models[0]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rank-multiple", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
