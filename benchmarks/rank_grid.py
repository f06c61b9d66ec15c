"""What ranks that are multiples of a number cost: predicted nats, from the spectra of a run.

    python -m benchmarks.rank_grid --run-dir DIR.run --ratio 0.2 0.4 --rank-multiple 1 16 64 128

Nothing is computed but the ranks, which takes seconds. `svdllm compare` with one --rank-multiple
measures the perplexity of such ranks.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from schemas.run.ranks import AllocationResult
from schemas.run.record import RunRecord
from schemas.run.targets import select
from workers.allocator import RankAllocator
from workers.checkpoint.fetching import resolve
from workers.model.inspection import inspect
from workers.storage.keys import RUN_RECORD, neurons_key
from workers.storage.places import read_bytes
from workers.storage.store import Store


def main() -> None:
    """Share ranks out by every grid at every ratio, and print one table."""
    options = _parse()
    record = RunRecord.model_validate_json(read_bytes(options.run_dir / RUN_RECORD))
    table = Table("ratio", title=f"Predicted nats a token, {Path(record.config.model).name}")
    for heading in ("multiple of", "nats", "more", "below the budget", "on smaller grids"):
        table.add_column(heading, justify="right")
    allocators = _allocators(record, options)
    for ratio in options.ratio:
        found = {multiple: one.allocate(ratio) for multiple, one in allocators.items()}
        least = next(iter(found.values())).nats
        for multiple, result in found.items():
            table.add_row(f"{ratio:.0%}", f"{multiple}", *_cells(result, multiple, least))
    Console(width=100).print(table)


def _allocators(record: RunRecord, options: argparse.Namespace) -> dict[int, RankAllocator]:
    """Return an allocator for each grid, with what the run has committed."""
    config = record.config.model_copy(update={"run_dir": options.run_dir})
    base = inspect(resolve(config.model, config.revision), dequantize=config.dequantize)
    spec, ids, store = select(config, base), record.ids, Store(options.run_dir)
    ordered = [one for one in spec.neurons if store.record(neurons_key(ids, one.name))]
    found = {}
    for multiple in options.rank_multiple:
        allocation = config.allocation.model_copy(update={"rank_multiple": multiple})
        found[multiple] = RankAllocator(config.model_copy(update={"allocation": allocation}))
        found[multiple].gather(spec.matrices, ids, neurons=ordered)
    return found


def _cells(result: AllocationResult, multiple: int, least: float | None) -> list[str]:
    smaller = sum(1 for rank in result.ranks.values() if rank is not None and rank % multiple)
    nats, first = result.nats or 0.0, least or 1.0
    return [
        f"{nats:.4f}",
        f"{nats / first - 1:+.1%}",
        f"{1 - result.parameters / result.budget:.3%}",
        f"{smaller} of {len(result.ranks)}",
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--rank-multiple", type=int, nargs="+", default=[1, 16, 64, 128])
    return parser.parse_args()


if __name__ == "__main__":
    main()
