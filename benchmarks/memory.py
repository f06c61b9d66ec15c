"""Peak anonymous memory of driver and workers at two model sizes: the driver's must not grow.

python -m benchmarks.memory --work-dir DIR
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.fresh import in_fresh_process
from benchmarks.random_llama import save_with_tokenizer
from pipeline.cli.demo_inputs import write_texts
from pipeline.compress import compress
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig
from schemas.result.manifest import RunResult

_SIZES = {"hidden 256, 4 layers": (256, 4), "hidden 1024, 16 layers": (1024, 16)}


def main() -> None:
    """Build two random Llamas, compress each in a fresh process, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    folder = parser.parse_args().work_dir
    calibration, _ = write_texts(folder / "text")
    table = Table("random Llama", title="Peak anonymous memory, MB")
    for heading in ("parameters", "driver", "workers"):
        table.add_column(heading, justify="right")
    for name, (hidden, layers) in _SIZES.items():
        model = folder / f"llama-{hidden}-{layers}"
        in_fresh_process(save_with_tokenizer, model, hidden, layers)
        result = in_fresh_process(_compress, model, calibration)
        table.add_row(
            name,
            f"{result.outputs[0].compression.parameters_before:,}",
            f"{result.driver_peak_bytes / 1e6:,.0f}",
            ", ".join(f"{peak / 1e6:,.0f}" for peak in result.worker_peak_bytes),
        )
    Console(width=90).print(table)


def _compress(model: Path, calibration: Path) -> RunResult:
    return compress(
        RunConfig(
            model=str(model),
            output=model.with_name(f"{model.name}-compressed"),
            ratio=(0.2,),
            calibration=CalibrationConfig(
                text=str(calibration),
                samples=8,
                sequence_length=256,
                gradient_samples=8,
                gradient_length=128,
            ),
            cluster=ClusterConfig(workers=2),
        )
    )


if __name__ == "__main__":
    main()
