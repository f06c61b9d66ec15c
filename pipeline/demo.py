"""`svdllm demo`: the main job on a real model, with the text that every Python carries."""

from pathlib import Path

from rich.console import Console

from pipeline import render
from pipeline.compress import compress
from pipeline.demo_inputs import fetch_model, write_texts
from pipeline.evaluate import evaluate
from pipeline.evaluate import render as evaluation_table
from schemas.config import CalibrationConfig, ClusterConfig, RunConfig
from schemas.evaluation import EvaluateConfig
from workers.verify import require, verify_checkpoint

_RATIO = 0.2
_WINDOWS = 12


def run_demo(folder: Path, console: Console) -> None:
    """Compress SmolLM2-135M-Instruct at 20 % on two local workers, verify and evaluate it."""
    model = fetch_model(folder / "SmolLM2-135M-Instruct")
    calibration, evaluation = write_texts(folder / "text")
    output = folder / "SmolLM2-135M-Instruct-20"
    result = compress(
        RunConfig(
            model=str(model),
            output=output,
            ratio=(_RATIO,),
            calibration=CalibrationConfig(
                text=str(calibration),
                samples=32,
                sequence_length=1024,
                gradient_samples=32,
                gradient_length=256,
            ),
            cluster=ClusterConfig(workers=2),
        )
    )
    console.print(render.run_table(result))
    checks = verify_checkpoint(output, published=True)
    console.print(render.check_table(checks))
    require(checks, output)
    report = evaluate(
        EvaluateConfig(
            checkpoint=str(output),
            baseline=str(model),
            text=str(evaluation),
            sequence_length=1024,
            max_windows=_WINDOWS,
        )
    )
    console.print(evaluation_table(report))
