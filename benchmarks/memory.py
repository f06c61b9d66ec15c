"""Peak anonymous memory of driver and workers at two model sizes: the driver's must not grow.

python -m benchmarks.memory --work-dir DIR
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.random_llama import on_random_llama
from pipeline.compress import compress

_SIZES = {"hidden 256, 4 layers": (256, 4), "hidden 1024, 16 layers": (1024, 16)}


def main() -> None:
    """Build two random Llamas, compress each in a fresh process, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    folder = parser.parse_args().work_dir
    table = Table("random Llama", title="Peak anonymous memory, MB")
    for heading in ("parameters", "driver", "workers"):
        table.add_column(heading, justify="right")
    for name, (hidden, layers) in _SIZES.items():
        result = on_random_llama(compress, folder, hidden, layers, (8, 256), workers=2)
        table.add_row(
            name,
            f"{result.outputs[0].compression.parameters_before:,}",
            f"{result.driver_peak_bytes / 1e6:,.0f}",
            ", ".join(f"{peak / 1e6:,.0f}" for peak in result.worker_peak_bytes),
        )
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
