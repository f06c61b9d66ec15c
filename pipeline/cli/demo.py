"""`svdllm demo`: the main job on a real model, with the text that every Python carries."""

from pathlib import Path

from pipeline.cli.demo_inputs import fetch_model, write_texts
from pipeline.cli.printing import show, whole
from pipeline.cli.tables.evaluation import evaluation_table
from pipeline.cli.tables.run import check_table, run_table
from pipeline.compress import compress
from pipeline.request.places import require_writable
from schemas.request.config import RunConfig
from schemas.request.groups import (
    CalibrationConfig,
    ClusterConfig,
    EvaluationTextConfig,
    NumericsConfig,
)
from workers.checkpoint.verify import require, verify_checkpoint
from workers.process.devices import find_device, has_bfloat16_units

_RATIO = 0.2
_WINDOWS = 4  # of evaluation: enough to see what 20 % cost


def run_demo(folder: Path) -> None:
    """Compress SmolLM2-135M-Instruct at 20 % on two local workers, compare and verify it."""
    require_writable((folder / "text").absolute())
    model = fetch_model(folder / "SmolLM2-135M-Instruct")
    calibration, evaluation = write_texts(folder / "text")
    output = folder / "SmolLM2-135M-Instruct-20"
    fast = has_bfloat16_units(find_device("auto"))
    result = compress(
        RunConfig(
            model=str(model),
            output=output,
            ratio=(_RATIO,),
            calibration=CalibrationConfig(
                text=str(calibration),
                samples=16,
                sequence_length=1024,
                gradient_samples=36,
                gradient_length=256,
            ),
            evaluation=EvaluationTextConfig(
                text=str(evaluation), sequence_length=1024, windows=_WINDOWS
            ),
            cluster=ClusterConfig(workers=2),
            numerics=NumericsConfig(dtype="bfloat16" if fast else "auto"),
        )
    )
    show(run_table(result))
    checks = list(result.outputs[0].checks) or verify_checkpoint(output, published=True)
    show(check_table(checks))
    require(checks, output)
    if report := result.outputs[0].evaluation:
        show(evaluation_table(report))
    show(whole(f"{output / 'report.html'}: ranks, spectra, losses, time"))
