"""The configuration of a run; flags, YAML and Python all build the same `RunConfig`."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.base import Schema
from schemas.location import Location, Url, is_within
from schemas.model.spec import Factors
from schemas.request.budget import OPTIONS, BudgetConfig
from schemas.request.groups import (
    OF_METHOD,
    AllocationConfig,
    CalibrationConfig,
    ClusterConfig,
    EvaluationTextConfig,
    NumericsConfig,
    TargetsConfig,
)
from schemas.request.methods import (
    ALLOCATIONS,
    METHODS,
    TRUNCATIONS,
    Method,
    Truncation,
)
from schemas.request.recovery import MOST_TOKENS, RecoveryConfig, RefinementConfig
from schemas.request.settings import SEVERAL, Flag

ROUNDS = "rounds"  # the folder of earlier rounds in a run directory
OnFailure = Literal["fail", "keep_dense"]
NO_RATIO = (
    "not given; use --ratio or the key ratio of --config, or (of svdllm compress) a budget "
    f"instead: {', '.join(OPTIONS.values())}"
)
Ratio = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]


class CompressionConfig(Schema):
    """How checkpoints are compressed, whichever they are.

    `ratio` is the fraction of the targeted parameters REMOVED, as in the papers.
    """

    ratio: Annotated[tuple[Ratio, ...], SEVERAL] = Field(
        description="Fraction of the targeted parameters REMOVED; one or several, as 0.2,0.4"
    )
    method: Method = Field("two-sided", description="A preset of the next three")
    truncation: Annotated[Truncation, Flag(unset=OF_METHOD)] = Field(
        "fisher", description="How a matrix is cut at a rank"
    )
    allocation: AllocationConfig = AllocationConfig()
    factors: Annotated[Factors, Flag(unset=OF_METHOD)] = Field(
        "pivoted", description="How a cut matrix is stored"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of sampled labels")
    on_failure: OnFailure = Field(
        "fail",
        description="When a matrix cannot be cut: fail, or keep_dense (the others are cut more)",
    )
    ratio_by: dict[str, Ratio] = Field(
        default_factory=dict,
        description="Ratios of their own for patterns of matrices, as "
        '{"mlp.down_proj": 0.1, "layers.0.*": 0}; the others share --ratio',
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Cut and train so often, each time the same share of what is left: for deep "
        "ratios",
    )
    any_architecture: bool = Field(
        False, description="Compress a kind of model that was never tested, too"
    )
    dequantize: bool = Field(
        False, description="Compress an FP8 or MXFP4 base, whose values are read in bfloat16"
    )
    targets: TargetsConfig = TargetsConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    refinement: RefinementConfig = RefinementConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    evaluation: EvaluationTextConfig = EvaluationTextConfig()
    numerics: NumericsConfig = NumericsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        method = data.get("method")
        preset = METHODS["two-sided"]
        if isinstance(method, str) and method in METHODS:
            preset = METHODS[method]
        given = {key: value for key, value in data.items() if value is not None}
        allocation = {"method": preset["allocation"]}
        if isinstance(asked := given.get("allocation", {}), dict):
            given["allocation"] = allocation | asked
        return preset | given

    @field_validator("ratio_by", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f'not JSON ({error}); write {{"PATTERN": RATIO, ...}}') from error

    @field_validator("ratio")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError(NO_RATIO)
        if len({f"{ratio:.2f}" for ratio in value}) != len(value):
            raise ValueError(
                f"{', '.join(map(str, value))} do not differ in their first two decimals, which "
                "name the folders of the outputs; ask for them in separate runs"
            )
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.needs_gradients and self.calibration.gradient_samples == 0:
            raise ValueError(
                f"truncation {self.truncation} with allocation {self.allocation.method} needs "
                "gradients, but calibration.gradient_samples is 0; ask for some, or use "
                "--truncation input-only --allocation uniform"
            )
        if self.needs_gradients and self.numerics.dtype == "float16":
            raise ValueError(
                "numerics.dtype is float16, whose range gradients leave: they would be zero; use "
                "--dtype bfloat16 or float32"
            )
        if not self.trains and (self.recovery.text or self.recovery.tokens):
            raise ValueError(
                "recovery.text and recovery.tokens are for training; add --refine or --recover"
            )
        if self.rounds > 1 and not (self.trains and len(self.ratio) == 1):
            raise ValueError(
                f"rounds = {self.rounds}: each round trains what it has cut, for one ratio; add "
                "--recover, and ask for other ratios in runs of their own"
            )
        if self.refinement.enabled and self.recovery.rank_of_updates:
            raise ValueError(
                "--refine trains whole factors, --recovery svd-llm updates of low rank in their "
                "place; ask for one of them"
            )
        if self.trains and self.numerics.dtype == "float16":
            raise ValueError(
                "numerics.dtype is float16, in which the gradients of --refine and --recover would "
                "be zero; use --dtype bfloat16 or float32"
            )
        if TRUNCATIONS[self.truncation].scaled and self.allocation.method != "uniform":
            raise ValueError(
                f"allocation {self.allocation.method} compares the losses of matrices, but "
                f"truncation {self.truncation} gives none that can be compared; use "
                "--allocation uniform"
            )
        weighed = TRUNCATIONS[self.truncation].weighed
        if weighed and ALLOCATIONS[self.allocation.method].layer_outputs:
            raise ValueError(
                f"allocation {self.allocation.method} needs losses in units of layer outputs, but "
                f"truncation {self.truncation} measures nats; use --allocation loss-aware, or "
                "another --truncation"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether factors are trained after truncation."""
        return self.refinement.enabled or self.recovery.enabled

    @property
    def training_tokens(self) -> int:
        """Tokens of text that training asks for: those of recovery, if it is asked for."""
        if self.recovery.enabled:
            return self.recovery.tokens or MOST_TOKENS
        return self.refinement.windows * self.recovery.sequence_length if self.trains else 0

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration includes a backward stream."""
        found = TRUNCATIONS[self.truncation], ALLOCATIONS[self.allocation.method]
        return found[0].needs_gradients or found[1].nats


class RunConfig(CompressionConfig):
    """One compression run: `compress(RunConfig(model=..., ratio=0.2, output=...))`."""

    model: str = Field(description="A local checkpoint folder, a hub id or a URL (s3://, gs://)")
    output: Location = Field(description="Folder or URL of the compressed checkpoint")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    run_dir: Annotated[Location | None, Flag(unset="OUTPUT.run, none for a URL")] = Field(
        None, description="Folder or URL of the run"
    )
    adopt: Annotated[Location | None, Flag(hidden=True)] = Field(
        None,
        description="A finished checkpoint whose factors are trained, instead of cutting the "
        "matrices: what `svdllm recover` sets; if there are several rounds, the one that is cut "
        "further",
    )

    budget: BudgetConfig = BudgetConfig()
    ratio: Annotated[tuple[Ratio, ...], SEVERAL, Flag(unset="that of a budget")] = Field(
        (), description="Fraction of the targeted parameters REMOVED; one or several, as 0.2,0.4"
    )

    @model_validator(mode="before")
    @classmethod
    def _ratio_or_budget(cls, data: Any) -> Any:
        """Let the ratio be found by a budget; else it is missing where nobody names it."""
        if not isinstance(data, dict) or data.get("ratio") not in (None, (), []):
            return data
        budget = data.get("budget")
        asked = budget.model_dump() if isinstance(budget, BudgetConfig) else budget
        given = {name: value for name, value in data.items() if name != "ratio"}
        found = isinstance(asked, dict) and any(asked.get(name) is not None for name in OPTIONS)
        return given if found else given | {"ratio": ()}

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.ratio and self.budget.asked:
            raise ValueError(
                f"{self.budget.option}: a budget finds the ratio; leave out --ratio, or the budget"
            )
        if self.budget.measured and self.trains:
            raise ValueError(
                f"{self.budget.option}: its trials are measured without --refine and --recover; "
                "find the ratio first, then train at it with `svdllm recover`"
            )
        return self

    @model_validator(mode="after")
    def _adopts_to_train(self) -> Self:
        if self.adopt is not None and not (self.trains and len(self.ratio) == 1):
            raise ValueError(
                f"adopt {self.adopt}: a checkpoint has one ratio, and its factors are adopted to "
                "be trained; use `svdllm recover`"
            )
        return self

    @model_validator(mode="after")
    def _folders_apart(self) -> Self:
        if isinstance(self.output, Url) and self.run_dir is None:
            raise ValueError(
                f"output {self.output} is in an object store; name a run directory with --run-dir: "
                "a folder that all nodes share, or a URL"
            )
        for one, other in ((self.output, self.run_folder), (self.run_folder, self.output)):
            if is_within(one, other):
                raise ValueError(
                    f"output {self.output} and run_dir {self.run_folder}: neither may be inside "
                    "the other; name another --run-dir"
                )
        return self

    @property
    def calibrates(self) -> bool:
        """Whether matrices are cut, by statistics of a text; else factors are adopted."""
        return self.adopt is None or self.rounds > 1

    def in_rounds(self) -> tuple["RunConfig", ...]:
        """Return the runs that a request of several rounds consists of, the last one in its places.

        Each keeps the same share of the parameters that the one before it has left: after round i
        of n, keep ** (i / n) of them. It adopts that one's checkpoint.
        """
        place, found = self.run_folder / ROUNDS, list[RunConfig]()
        for number in range(1, self.rounds + 1):
            here = place / str(number)
            update: dict[str, Any] = {"rounds": number}
            if number > 1:
                update["adopt"] = found[-1].output
            if number < self.rounds:
                share = number / self.rounds
                by = {name: _of_round(ratio, share) for name, ratio in self.ratio_by.items()}
                update |= {"output": here / "checkpoint", "run_dir": here / "run"}
                update |= {"ratio": (_of_round(self.ratio[0], share),), "ratio_by": by}
            found.append(self.model_copy(update=update))
        return tuple(found)

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration includes a backward stream."""
        return self.calibrates and super().needs_gradients

    @property
    def fetched(self) -> Path:
        """Folder for the small files of a model in an object store: in the run directory if that
        is a folder, else in the home folder on each node, where nobody else writes.
        """
        if isinstance(self.run_folder, Path):
            return self.run_folder / "base"
        return Path.home() / ".cache" / "svdllm"

    @property
    def run_folder(self) -> Location:
        """Folder or prefix of the run's artefacts."""
        return self.run_dir or Path(f"{self.output}.run")

    def output_folder(self, ratio: float) -> Location:
        """Folder or URL of the checkpoint at one of the ratios."""
        return self.output if len(self.ratio) <= 1 else self.output / f"ratio-{ratio:.2f}"


def _of_round(ratio: float, share: float) -> float:
    """Return the ratio of a round, `share` of which are done with it, to four decimals."""
    kept: float = (1 - ratio) ** share
    return round(1 - kept, 4)
