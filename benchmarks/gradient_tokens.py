"""How many gradient tokens a model takes, with a fixed shrinkage and with one chosen from the data.

    python -m benchmarks.gradient_tokens --model DIR --calibration TEXT --evaluation TEXT \\
        --work-dir DIR

Tokens are counted for each dimension of the widest gradient moment. With few of them the moment
fits its own noise: less loss is predicted than there is.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.scoring import score
from pipeline.compress import compress
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, NumericsConfig
from workers.model.inspection import inspect
from workers.process.logs import set_up_logging

_WINDOWS = 12
_WINDOWS_A_DIMENSION = 2  # windows are half as long as the widest moment


def main() -> None:
    """Compress with every number of tokens and every shrinkage, print a row for each."""
    options = _parse()
    set_up_logging()
    widest = max(matrix.small for matrix in inspect(Path(options.model)).matrices)
    dense = score(options.model, options.evaluation, _WINDOWS)
    name, ratio = Path(options.model).name, options.ratio
    table = Table(title=f"{name}, {ratio:.0%} removed: perplexity (dense {dense.perplexity:.2f})")
    for heading in ("tokens a dimension", "shrinkage", "perplexity", "nats predicted", "measured"):
        table.add_column(heading, justify="right")
    for tokens in options.tokens:
        for shrinkage in (0.1, None):
            config = _config(options, tokens, shrinkage, widest // _WINDOWS_A_DIMENSION)
            (output,) = compress(config).outputs
            scored = score(str(output.path), options.evaluation, _WINDOWS)
            used = sorted(m.shrinkage for m in output.compression.matrices if m.shrinkage)
            chosen = f"chosen, {used[0]:.3f} to {used[-1]:.3f}, median {used[len(used) // 2]:.3f}"
            table.add_row(
                f"{tokens}",
                chosen if shrinkage is None else f"{shrinkage:g}",
                f"{scored.perplexity:.2f}",
                f"{output.compression.nats:.3f}",
                f"{scored.mean_nll - dense.mean_nll:.3f}",
            )
    Console(width=120).print(table)


def _config(
    options: argparse.Namespace, tokens: int, shrinkage: float | None, length: int
) -> RunConfig:
    return RunConfig(
        model=options.model,
        output=options.work_dir / f"{tokens}-{shrinkage or 'chosen'}",
        run_dir=options.work_dir / f"run-{tokens}",
        ratio=(options.ratio,),
        calibration=CalibrationConfig(
            text=options.calibration,
            samples=32,
            sequence_length=1024,
            gradient_samples=tokens * _WINDOWS_A_DIMENSION,
            gradient_length=length,
        ),
        numerics=NumericsConfig(shrinkage=shrinkage),
        cluster=ClusterConfig(workers=options.workers),
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 8, 16, 28])
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
