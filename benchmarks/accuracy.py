"""Perplexity of every method at several ratios, on one calibration: the table of the README.

    python -m benchmarks.accuracy --model DIR --calibration TEXT --evaluation TEXT --work-dir DIR

All methods share one run directory, so moments that two methods need are accumulated once.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.compress import compress
from pipeline.evaluate import evaluate
from schemas.config import METHODS, TITLES, CalibrationConfig, ClusterConfig, Method, RunConfig
from schemas.evaluation import EvaluateConfig, ModelEvaluation
from schemas.manifest import OutputResult
from workers.logs import set_up_logging


def main() -> None:
    """Compress with every method, evaluate every result, print one table."""
    options = _parse()
    set_up_logging()
    dense = _evaluate(options, options.model)
    table = Table(title=f"{Path(options.model).name}: perplexity (dense {dense.perplexity:.2f})")
    table.add_column("method")
    for heading in ("asked", "removed", "parameters", "nats predicted", "measured", "perplexity"):
        table.add_column(heading, justify="right")
    for method in METHODS:
        for output in compress(_config(options, method)).outputs:
            scored = _evaluate(options, str(output.path))
            table.add_row(TITLES[method], *_cells(output, scored, dense))
    Console(width=110).print(table)


def _cells(output: OutputResult, scored: ModelEvaluation, dense: ModelEvaluation) -> list[str]:
    done = output.compression
    return [
        f"{output.ratio:.0%}",
        f"{done.removed:.2%}",
        f"{done.parameters_after:,}",
        "" if done.nats is None else f"{done.nats:.3f}",
        f"{scored.mean_nll - dense.mean_nll:.3f}",
        f"{scored.perplexity:.2f}",
    ]


def _config(options: argparse.Namespace, method: Method) -> RunConfig:
    return RunConfig(
        model=options.model,
        output=options.work_dir / method,
        run_dir=options.work_dir / "run",
        ratio=tuple(options.ratio),
        method=method,
        calibration=CalibrationConfig(
            text=options.calibration,
            samples=64,
            sequence_length=1024,
            gradient_samples=32,
            gradient_length=512,
        ),
        cluster=ClusterConfig(workers=options.workers),
    )


def _evaluate(options: argparse.Namespace, checkpoint: str) -> ModelEvaluation:
    report = evaluate(
        EvaluateConfig(
            checkpoint=checkpoint,
            text=options.evaluation,
            sequence_length=1024,
            max_windows=16,
            sample_tokens=1,
        )
    )
    return report.models[0]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
