"""The configuration of `svdllm compare`."""

import math
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.base import Request
from schemas.location import LocalPath
from schemas.request.compression import Ratio
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig, NumericsConfig
from schemas.request.methods import ALLOCATIONS, METHODS, Method
from schemas.request.quantization import FEW_BITS, ROTATED, QuantizationConfig, Scheme
from schemas.request.settings import SEVERAL, SPLIT, Flag, Words
from schemas.request.sizes import AS_SIZE, format_size
from schemas.request.unused import as_used

_SAMPLES, _LENGTH = (
    QuantizationConfig.model_fields[name].default
    for name in ("calibration_samples", "sequence_length")
)  # more do not fit one process so soon


_EACH_ONCE = AfterValidator(lambda names: tuple(dict.fromkeys(names)))


class ComparisonConfig(Request):
    """Methods at equal parameters on one model, or fewer ranks and fewer bits at one size: each is
    a run, and all share a run directory.
    """

    model: str = Field(
        min_length=1,
        description="A local checkpoint folder, a hub id or, without schemes and tasks, a URL "
        "(s3://, gs://)",
    )
    output: LocalPath = Field(description="Folder of the checkpoints, the table and the report")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    run_dir: Annotated[LocalPath | None, Flag(unset="OUTPUT/run")] = Field(
        None, description="Folder that all runs share"
    )
    ratios: Annotated[tuple[Ratio, ...], SEVERAL] = Field(
        (0.2, 0.4), min_length=1, description="Fractions of the targeted parameters REMOVED"
    )
    target_size: Annotated[int | None, AS_SIZE] = Field(
        None,
        gt=0,
        description="Most bytes of all weight files, as 12GB, instead of --ratios: which is best, "
        "fewer ranks by one method, fewer bits, or both",
    )
    methods: Annotated[
        tuple[Method, ...],
        SPLIT,
        _EACH_ONCE,
        Flag(unset="all that lower ranks; for a size two-sided"),
    ] = Field(
        tuple(name for name, row in METHODS.items() if ALLOCATIONS[row["allocation"]].ranks),
        min_length=1,
        description="Methods to compare, separated by commas",
    )
    schemes: Annotated[tuple[Scheme, ...], SPLIT, _EACH_ONCE, Flag(unset="none")] = Field(
        (), description="Also the base itself at fewer bits, by GPTQ below 8: W8A16,W4A16"
    )
    evaluate: Words = Field(
        min_length=1,
        max_length=2,
        description="One or two texts to compare on, named as for --calibration",
    )
    sequence_length: Annotated[int, Flag("evaluation-length")] = Field(
        2048, ge=2, description="Tokens in a window of these texts"
    )
    windows: int = Field(32, ge=1, description="First windows of each that are scored")
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    rank_multiple: int = Field(
        1, ge=1, description="Every rank is a multiple of it; 1 keeps parameters equal"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of random signs")
    calibration: CalibrationConfig = CalibrationConfig()
    numerics: NumericsConfig = NumericsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = self.model_fields_set if self.target_size is not None else set[str]()
        if "ratios" in given:
            raise ValueError("--target-size finds the ratios; leave out --ratios")
        if "methods" in given and len(self.methods) > 1:
            raise ValueError(
                f"--target-size cuts by one method, not by {', '.join(self.methods)}; name one"
            )
        if self.tasks.samples is not None:
            raise ValueError(
                "samples: of one checkpoint and its base; their answers are kept in OUTPUT/tasks; "
                "from there `svdllm evaluate` with --results and --samples writes them"
            )
        return self

    def uncut(self, method: Method) -> RunConfig:
        """A run that cuts nothing, for what is known of the base."""
        return self._run(method, output=self.output / "uncut", ratio=(0.0,))

    @property
    def runs(self) -> dict[Method, RunConfig]:
        """The run of each method; it compares with the base on the first text."""
        named = [name for name in METHODS if name in self.methods]
        return {
            name: self._run(name, output=self.output / name, ratio=self.ratios) for name in named
        }

    def within(self, method: Method, scheme: Scheme | None) -> RunConfig:
        """The run that cuts the model until it has the size, as stored or in a scheme.

        Where factors are rotated, which pivoted ones cannot be, they are plain, and their ranks
        multiples of 32, so that ranks are shared out by what will be stored.
        """
        name, fields = self.named(method, scheme), dict[str, Any]()
        if scheme in ROTATED:
            fields |= {"factors": "plain", "rank_multiple": math.lcm(self.rank_multiple, 32)}
        output = self.output / "cut" / name if scheme else self.output / name
        budget = {"size": self.target_size, "scheme": scheme}
        return self._run(method, output=output, budget=budget, **fields)

    def named(self, method: Method, scheme: Scheme | None) -> str:
        """The folder of what has the size: another size is in another one."""
        return "-".join(filter(None, (method, scheme, format_size(self.target_size or 0))))

    def _run(self, method: Method, **fields: Any) -> RunConfig:
        """Of the settings that all methods share, a run has those that its method uses."""
        multiple, row = fields.pop("rank_multiple", self.rank_multiple), METHODS[method]
        given: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "run_dir": self.run_dir or self.output / "run",
            "method": method,
            "truncation": row["truncation"],
            "seed": self.seed,
            "allocation": {"method": row["allocation"], "rank_multiple": multiple},
            "calibration": self.calibration,
            "evaluation": {
                "text": self.evaluate[0],
                "sequence_length": self.sequence_length,
                "windows": self.windows,
            },
            "numerics": self.numerics,
            "cluster": self.cluster,
        }
        return RunConfig.model_validate(as_used(given) | fields)

    def quantised(self, checkpoint: str, scheme: Scheme, name: str) -> QuantizationConfig:
        """How a checkpoint gets fewer bits: by GPTQ on the calibration text if they are few."""
        fields: dict[str, Any] = {
            "checkpoint": checkpoint,
            "scheme": scheme,
            "output": self.output / name,
            "seed": self.seed,
        }
        if scheme in FEW_BITS:
            fields |= {
                "calibration": self.calibration.text,
                "calibration_samples": min(self.calibration.samples, _SAMPLES),
                "sequence_length": min(self.calibration.sequence_length, _LENGTH),
                "device": self.cluster.device,
            }
        return QuantizationConfig.model_validate(fields)

    def scored(self, checkpoint: str, text: str, **fields: Any) -> EvaluationConfig:
        """The evaluation of a checkpoint on a text, with others of its `fields`."""
        given: dict[str, Any] = {
            "checkpoint": checkpoint,
            "text": text,
            "sequence_length": self.sequence_length,
            "windows": self.windows,
            "device": self.cluster.device,
        }
        return EvaluationConfig.model_validate(given | fields)

    def streamed(self, base: RunConfig, checkpoint: str, text: str, dtype: str) -> EvaluationConfig:
        """The evaluation of a checkpoint beside the base of a run, streamed as that was."""
        return self.scored(
            checkpoint,
            text,
            baseline=base.model,
            revision=base.revision,
            dtype=dtype,
            streamed=True,
            workers=self.cluster.workers,
            shard_layers=self.cluster.shard_layers,
            work_dir=self.output,
        )

    def solved(self, base: RunConfig, checkpoint: str, dtype: str) -> EvaluationConfig:
        """The tasks of a checkpoint, beside the base; what is found is kept for the next one."""
        results = {"results": self.tasks.results or self.output / "tasks"}
        given: dict[str, Any] = {
            "checkpoint": checkpoint,
            "baseline": base.model,
            "revision": base.revision,
            "tasks": self.tasks.model_copy(update=results),
            "device": self.cluster.device,
            "dtype": dtype,
        }
        return EvaluationConfig.model_validate(given)
