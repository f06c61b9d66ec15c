"""The configuration of `svdllm compare`."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, field_validator

from schemas.base import Schema
from schemas.request.compression import Ratio
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from schemas.request.groups import (
    AllocationConfig,
    CalibrationConfig,
    ClusterConfig,
    EvaluationTextConfig,
    NumericsConfig,
)
from schemas.request.methods import METHODS, Method
from schemas.request.quantization import FEW_BITS, QuantizationConfig, Scheme
from schemas.request.settings import SEVERAL, Flag, Words


class ComparisonConfig(Schema):
    """Methods at equal parameters on one model: each is a run, and all share a run directory."""

    model: str = Field(description="A local checkpoint folder, a hub id or a URL (s3://, gs://)")
    output: Path = Field(description="Folder of the checkpoints, the table and the report")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    run_dir: Annotated[Path | None, Flag(unset="OUTPUT/run")] = Field(
        None, description="Folder that all runs share"
    )
    ratios: Annotated[tuple[Ratio, ...], SEVERAL] = Field(
        (0.2, 0.4), min_length=1, description="Fractions of the targeted parameters REMOVED"
    )
    methods: Words = Field(tuple(METHODS), description="Methods to compare, separated by commas")
    schemes: Annotated[Words, Flag(unset="none")] = Field(
        (), description="Also the base itself at fewer bits, by GPTQ below 8: W8A16,W4A16"
    )
    evaluate: Words = Field(
        min_length=1, max_length=2, description="One or two texts to compare on, as --calibration"
    )
    sequence_length: Annotated[int, Flag("evaluation-length")] = Field(
        2048, ge=2, description="Tokens in a window of these texts"
    )
    windows: int = Field(32, ge=1, description="First windows of each that are scored")
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    rank_multiple: int = Field(
        1, ge=1, description="Every rank is a multiple of it; 1 keeps parameters equal"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of sampled labels")
    calibration: CalibrationConfig = CalibrationConfig()
    numerics: NumericsConfig = NumericsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("methods")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in METHODS]
        if unknown or not value:
            raise ValueError(f"{', '.join(unknown) or 'none'}: choose among {', '.join(METHODS)}")
        return tuple(dict.fromkeys(value))

    @field_validator("schemes")
    @classmethod
    def _schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in get_args(Scheme)]:
            raise ValueError(f"{', '.join(unknown)}: choose among {', '.join(get_args(Scheme))}")
        return tuple(dict.fromkeys(value))

    @property
    def runs(self) -> dict[Method, RunConfig]:
        """The run of each method; it compares with the base on the first text."""
        evaluation = EvaluationTextConfig(
            text=self.evaluate[0], sequence_length=self.sequence_length, windows=self.windows
        )
        return {
            name: RunConfig(
                model=self.model,
                output=self.output / name,
                revision=self.revision,
                run_dir=self.run_dir or self.output / "run",
                ratio=self.ratios,
                method=name,
                seed=self.seed,
                allocation=AllocationConfig.model_validate(
                    {"method": preset["allocation"], "rank_multiple": self.rank_multiple}
                ),
                calibration=self.calibration,
                evaluation=evaluation,
                numerics=self.numerics,
                cluster=self.cluster,
            )
            for name, preset in METHODS.items()
            if name in self.methods
        }

    def quantised(self, base: Path, scheme: str) -> QuantizationConfig:
        """How the base gets fewer bits: by GPTQ on the calibration text if they are few."""
        fields: dict[str, Any] = {
            "checkpoint": str(base),
            "scheme": scheme,
            "output": self.output / scheme,
            "calibration": self.calibration.text if scheme in FEW_BITS else None,
            "seed": self.seed,
            "device": self.cluster.device,
        }
        return QuantizationConfig.model_validate(fields)

    def scored(self, base: Path, checkpoint: str, text: str, **fields: Any) -> EvaluationConfig:
        """The evaluation of a checkpoint on a text, beside the base; others of its `fields`."""
        given: dict[str, Any] = {
            "checkpoint": checkpoint,
            "baseline": str(base),
            "text": text,
            "sequence_length": self.sequence_length,
            "windows": self.windows,
            "device": self.cluster.device,
        }
        return EvaluationConfig.model_validate(given | fields)

    def solved(self, base: Path, checkpoint: str) -> EvaluationConfig:
        """The tasks of a checkpoint, beside the base; what is found is kept for the next one."""
        own = "results" in self.tasks.model_fields_set
        results = {} if own else {"results": self.output / "tasks"}
        return EvaluationConfig(
            checkpoint=checkpoint,
            baseline=str(base),
            tasks=self.tasks.model_copy(update=results),
            device=self.cluster.device,
        )
