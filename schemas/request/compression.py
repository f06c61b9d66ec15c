"""How checkpoints are compressed, whichever they are: what a run and a night have in common."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.base import Request
from schemas.model.spec import Factors
from schemas.request.budget import OPTIONS
from schemas.request.groups import (
    OF_METHOD,
    AllocationConfig,
    CalibrationConfig,
    ClusterConfig,
    EvaluationTextConfig,
    NumericsConfig,
    TargetsConfig,
)
from schemas.request.methods import ALLOCATIONS, METHODS, TRUNCATIONS, Method, Truncation
from schemas.request.recovery import (
    MOST_TOKENS,
    OF_REFINEMENT,
    RecoveryConfig,
    RefinementConfig,
)
from schemas.request.settings import SEVERAL, Flag
from schemas.request.unused import unused_settings

OnFailure = Literal["fail", "keep_dense"]
NO_RATIO = (
    "not given; use --ratio or the key ratio of --config, or (of svdllm compress) a budget "
    f"instead: {', '.join(OPTIONS.values())}"
)
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


class CompressionConfig(Request):
    """How checkpoints are compressed, whichever they are.

    `ratio` is the fraction of the targeted parameters REMOVED, as in the papers.
    """

    ratio: Annotated[tuple[Ratio, ...], SEVERAL] = Field(
        description="Fraction of the targeted parameters REMOVED; one or several, as 0.2,0.4"
    )
    method: Method = Field(
        "two-sided", description="Sets truncation, allocation and form of the factors together"
    )
    truncation: Annotated[Truncation, Flag(unset=OF_METHOD)] = Field(
        "fisher", description="How a matrix is cut at a rank"
    )
    allocation: AllocationConfig = AllocationConfig()
    factors: Annotated[Factors, Flag(unset=OF_METHOD)] = Field(
        "pivoted", description="How a cut matrix is stored"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of random signs")
    on_failure: OnFailure = Field(
        "fail",
        description="When a matrix cannot be cut: fail, or keep_dense (the others are cut more)",
    )
    ratio_by: dict[str, Ratio] = Field(
        default_factory=dict,
        description="Ratios of their own for patterns of matrices, as "
        '{"mlp.down_proj": 0.1, "layers.0.*": 0}; the first that names a matrix counts, but 0 in '
        "any case; the others share --ratio",
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
        if not (weighed or self.lowers_ranks):
            raise ValueError(
                f"allocation {self.allocation.method} removes nothing but neurons, of which "
                f"truncation {self.truncation} knows no loss; use --truncation fisher"
            )
        if weighed and ALLOCATIONS[self.allocation.method].bounded:
            raise ValueError(
                f"allocation {self.allocation.method} needs losses in units of layer outputs, but "
                f"truncation {self.truncation} measures nats; use --allocation loss-aware, or "
                "another --truncation"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> Self:
        """Raises ValueError if a setting is of a training or a method that is not asked for."""
        if not self.refinement.enabled and self.refinement != RefinementConfig():
            raise ValueError("refinement has settings, but is not asked for; add --refine")
        of_both = OF_REFINEMENT if self.refinement.enabled else set[str]()
        unused = [name for name in self.recovery.unusual if name not in of_both]
        if unused and not self.recovery.enabled:
            remedy = "--refine or --recover" if unused[0] in OF_REFINEMENT else "--recover"
            raise ValueError(f"recovery.{unused[0]} is of a training not asked for; add {remedy}")
        if self.recovery.method != "svd-llm":
            for name in ("order", "lora_rank"):
                if name in unused:
                    raise ValueError(f"recovery.{name} is of --recovery svd-llm alone")
        for name in unused_settings(self.truncation, self.allocation.method):
            group, _, field = name.partition(".")
            settings = getattr(self, group)
            value, default = getattr(settings, field), type(settings).model_fields[field].default
            if value and value != default:  # 0 is what there is without it
                raise ValueError(
                    f"{name} is of another truncation or allocation than {self.truncation} with "
                    f"{self.allocation.method}; leave it out"
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
    def lowers_ranks(self) -> bool:
        """Whether ranks may be lowered; if not, nothing goes but neurons."""
        return ALLOCATIONS[self.allocation.method].ranks

    @property
    def prunes(self) -> bool:
        """Whether whole neurons may be removed: losses of matrices and of neurons are in nats."""
        return ALLOCATIONS[self.allocation.method].neurons and TRUNCATIONS[self.truncation].weighed

    @property
    def one_width(self) -> bool:
        """Whether all MLPs that have as many neurons keep as many."""
        return ALLOCATIONS[self.allocation.method].one_width

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration includes a backward stream."""
        found = TRUNCATIONS[self.truncation], ALLOCATIONS[self.allocation.method]
        return found[0].needs_gradients or found[1].nats
