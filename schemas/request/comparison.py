"""The configuration of `svdllm compare`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from schemas.base import Schema
from schemas.request.compression import Ratio
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import (
    AllocationConfig,
    CalibrationConfig,
    ClusterConfig,
    EvaluationTextConfig,
    NumericsConfig,
)
from schemas.request.methods import METHODS, Method
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
    evaluate: Words = Field(
        min_length=1, max_length=2, description="One or two texts to compare on, as --calibration"
    )
    sequence_length: Annotated[int, Flag("evaluation-length")] = Field(
        2048, ge=2, description="Tokens in a window of these texts"
    )
    windows: int = Field(32, ge=1, description="First windows of each that are scored")
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

    def second(self, checkpoint: str) -> EvaluationConfig | None:
        """The evaluation of a checkpoint on the second text, beside the base; None without one."""
        if len(self.evaluate) < 2:
            return None
        return EvaluationConfig(
            checkpoint=checkpoint,
            baseline=self.model,
            text=self.evaluate[1],
            sequence_length=self.sequence_length,
            windows=self.windows,
            streamed=True,
            workers=self.cluster.workers,
            device=self.cluster.device,
        )
