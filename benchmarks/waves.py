"""Peak anonymous memory in wave mode at several depths: it must not grow with the layers.

    python -m benchmarks.waves

Random Llamas that differ only in depth; a worker holds one layer at a time, and the rows between
two waves lie in the run directory. Each run is in a fresh process. Exits with 1 if the greatest
peak of driver or workers is more than 10 % above the least.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.random_llama import on_random_llama
from pipeline.compress import compress

SPREAD = 0.10


def main() -> None:
    """Compress every depth, print the peaks and how far they spread."""
    options = _parse()
    results = [
        on_random_llama(
            compress,
            options.work_dir,
            options.hidden,
            layers,
            (options.samples, options.length),
            workers=options.workers,
            shard_layers=1,
        )
        for layers in options.layers
    ]
    drivers = [result.driver_peak_bytes for result in results]
    workers = [max(result.worker_peak_bytes) for result in results]
    where = f"hidden {options.hidden}, {options.workers} workers in waves"
    table = Table("layers", title=f"Peak anonymous memory, MB; {where}")
    for heading in ("waves", "parameters", "driver", "workers"):
        table.add_column(heading, justify="right")
    for layers, result in zip(options.layers, results, strict=True):
        table.add_row(
            str(layers),
            str(-(-layers // options.workers)),
            f"{result.outputs[0].compression.parameters_before:,}",
            f"{result.driver_peak_bytes / 1e6:,.0f}",
            ", ".join(f"{peak / 1e6:,.0f}" for peak in result.worker_peak_bytes),
        )
    table.add_section()
    table.add_row("spread", "", "", f"{_spread(drivers):.1%}", f"{_spread(workers):.1%}")
    Console(width=100).print(table)
    sys.exit(int(max(_spread(drivers), _spread(workers)) > SPREAD))


def _spread(peaks: Sequence[int]) -> float:
    """How far the greatest is above the least."""
    return max(peaks) / min(peaks) - 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16, help="windows of text in each stream")
    parser.add_argument("--length", type=int, default=256, help="tokens in a window")
    return parser.parse_args()


if __name__ == "__main__":
    main()
