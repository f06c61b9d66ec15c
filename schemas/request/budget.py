"""What a checkpoint may take, or lose, instead of a ratio."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.request.quantization import Scheme
from schemas.request.settings import Flag
from schemas.request.sizes import AS_COUNT, AS_SHARE, AS_SIZE, format_size

OPTIONS = {
    "size": "--target-size",
    "parameters": "--target-params",
    "perplexity": "--max-perplexity-increase",
    "kl": "--max-kl",
}
"""The budgets, of which a run has one at most, by their options."""


class BudgetConfig(Request):
    """One budget, instead of a ratio. A size is met by ranks alone; what is lost is measured on the
    text of the evaluation, at several ratios of one calibration.
    """

    size: Annotated[int | None, AS_SIZE, Flag("target-size")] = Field(
        None, gt=0, description="Most bytes of all weight files, as 12GB; instead of --ratio"
    )
    scheme: Scheme | None = Field(
        None, description="The size counts what `svdllm quantize` makes of the result in it"
    )
    parameters: Annotated[int | None, AS_COUNT, Flag("target-params")] = Field(
        None, gt=0, description="Most parameters of the whole model, as 5B; instead of --ratio"
    )
    perplexity: Annotated[float | None, AS_SHARE, Flag("max-perplexity-increase")] = Field(
        None,
        gt=0,
        le=1,
        description="Largest increase of perplexity on the text of --evaluate, as 5%; instead of "
        "--ratio",
    )
    kl: Annotated[float | None, Flag("max-kl")] = Field(
        None,
        gt=0,
        description="Largest KL(base || compressed) on that text, in nats a token; instead of "
        "--ratio",
    )
    tolerance: float = Field(
        0.005, gt=0, le=0.5, description="Ratios that are tried are multiples of it"
    )
    trials: int = Field(6, ge=1, description="Most ratios that are tried")

    @property
    def asked(self) -> str | None:
        """The field of the budget that was asked for; None if there is none."""
        return next((name for name in OPTIONS if getattr(self, name) is not None), None)

    @property
    def measured(self) -> bool:
        """Whether it takes an evaluation to know what a ratio costs."""
        return self.asked in ("perplexity", "kl")

    @property
    def option(self) -> str:
        """The option and its value, as they are typed; empty if there is no budget."""
        if (asked := self.asked) is None:
            return ""
        value = getattr(self, asked)
        if asked == "size":
            value = format_size(value)
            value += f" --set budget.scheme={self.scheme}" if self.scheme else ""
        elif asked == "perplexity":
            value = f"{100 * value:g}%"
        return f"{OPTIONS[asked]} {value}"

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [OPTIONS[name] for name in OPTIONS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a run has one budget; ask for one of them")
        if self.scheme and self.size is None:
            raise ValueError(f"scheme {self.scheme}: it is counted in a size; add --target-size")
        fields = type(self).model_fields
        of_trials = [n for n in ("tolerance", "trials") if getattr(self, n) != fields[n].default]
        if of_trials and not self.measured:
            raise ValueError(
                f"{', '.join(of_trials)}: of ratios that are measured; add "
                "--max-perplexity-increase or --max-kl"
            )
        return self
