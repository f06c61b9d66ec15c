"""The Python interface: the commands as functions. docs/python.md has examples.

from svdllm import AdoptionConfig, RunConfig, bench, compare, compress, evaluate, load, recover
"""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.bench import bench
from pipeline.compare import compare
from pipeline.compress import compress
from pipeline.evaluate import evaluate
from pipeline.export import export
from pipeline.quantize import quantize
from pipeline.recover import recover
from pipeline.tasks import evaluate_tasks
from schemas.errors import CompressorError, InputError, RunError
from schemas.request.adoption import AdoptionConfig
from schemas.request.bench import BenchConfig
from schemas.request.budget import BudgetConfig
from schemas.request.comparison import ComparisonConfig
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from schemas.request.export import ExportConfig
from schemas.request.groups import (
    CalibrationConfig,
    ClusterConfig,
    Device,
    DType,
    EvaluationTextConfig,
    NumericsConfig,
    TargetsConfig,
)
from schemas.request.quantization import QuantizationConfig
from schemas.request.recovery import RecoveryConfig, RefinementConfig
from schemas.result.bench import BenchReport
from schemas.result.comparison import ComparisonReport
from schemas.result.evaluation import EvaluationReport, ModelEvaluation
from schemas.result.export import Exported
from schemas.result.manifest import Compression, OutputResult, RunResult
from schemas.result.quantization import Quantization
from schemas.result.tasks import TaskReport
from workers.checkpoint.fetching import resolve
from workers.model.loading import load_model, load_tokenizer

__all__ = [
    "AdoptionConfig",
    "BenchConfig",
    "BenchReport",
    "BudgetConfig",
    "CalibrationConfig",
    "ClusterConfig",
    "ComparisonConfig",
    "ComparisonReport",
    "Compression",
    "CompressorError",
    "EvaluationConfig",
    "EvaluationReport",
    "EvaluationTextConfig",
    "ExportConfig",
    "Exported",
    "InputError",
    "Loaded",
    "ModelEvaluation",
    "NumericsConfig",
    "OutputResult",
    "Quantization",
    "QuantizationConfig",
    "RecoveryConfig",
    "RefinementConfig",
    "RunConfig",
    "RunError",
    "RunResult",
    "TargetsConfig",
    "TaskReport",
    "TasksConfig",
    "bench",
    "compare",
    "compress",
    "evaluate",
    "evaluate_tasks",
    "export",
    "load",
    "quantize",
    "recover",
]


class Loaded(NamedTuple):
    """A checkpoint in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(checkpoint: str | Path, dtype: DType = "auto", device: Device = "auto") -> Loaded:
    """Load a base or a compressed checkpoint (a folder or a hub id), in evaluation mode.

    `dtype` auto is the dtype of the weights, `device` auto is cuda if there is one. The code in a
    compressed checkpoint runs only if it is this program's own, byte for byte.
    Raises CheckpointError if it cannot be read, VerificationError if a tensor of the files
    has no place in the model or the reverse.
    """
    folder = resolve(str(checkpoint), None)
    return Loaded(
        load_model(folder, dtype, device, trust_remote_code=False),
        load_tokenizer(folder, trust_remote_code=False),
    )
