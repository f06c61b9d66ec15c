"""The settings of recovery: how the factors are trained after truncation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.request.settings import Flag
from schemas.request.texts import Texts

Objective = Literal["kl", "tokens", "hidden"]
"""What is minimised: KL(base || student) of the next token, its cross-entropy with the text, or the
squared distance of the last hidden states relative to the base's.
"""

RecoveryMethod = Literal["all-factors", "svd-llm"]
Factor = Literal["down", "up"]  # W' = up down, or its rows [down; up down]
Order = Literal["up-first", "down-first", "one-pass"]
METHODS: dict[RecoveryMethod, dict[str, Any]] = {
    "all-factors": {},
    "svd-llm": {"enabled": True, "objective": "tokens", "learning_rate": 1e-4},
}
"""The settings that a method presets, for those that are not given."""

_PHASES: dict[Order, tuple[tuple[Factor, ...], ...]] = {
    "up-first": (("up",), ("down",)),
    "down-first": (("down",), ("up",)),
    "one-pass": (("up", "down"),),
}


class RefinementConfig(Request):
    """Training of the factors of each layer alone, before recovery or instead of it: the layer is
    to give what the base's gives (AA-SVD: arXiv 2604.02119).
    """

    enabled: Annotated[bool, Flag("refine")] = Field(
        False, description="Train the factors of each layer alone after truncation"
    )
    windows: int = Field(48, ge=1, description="First windows of the recovery text to train on")
    passes: int = Field(2, ge=1, description="How often each of them is taken")
    batch: int = Field(2, ge=1, description="Windows in a step, of all workers together")
    learning_rate: float = Field(2e-4, gt=0.0, description="Of AdamW, constant")


# Settings of recovery that refinement takes, too: its text, and how states are judged and held.
OF_REFINEMENT = {"text", "micro_batch", "held_out", "objective", "norms", "offload"}
MOST_TOKENS = 8 * 2**20  # to train on, if no number is asked for
_STEPS, _LARGEST_BATCH = 100, 64


class RecoveryConfig(Request):
    """Training of the factors after truncation; everything else of the model is frozen.

    By default all factors are trained at once, and the base is the teacher (knowledge distillation:
    Hinton et al., arXiv 1503.02531). SVD-LLM (arXiv 2403.07378, section 3.2) freezes the factors
    and trains updates of low rank (LoRA: Hu et al., arXiv 2106.09685) on the text alone: first of
    one factor of every matrix, then of the other.
    """

    enabled: Annotated[bool, Flag("recover")] = Field(
        False, description="Train the factors against the base after truncation"
    )
    method: Annotated[RecoveryMethod, Flag("recovery")] = Field(
        "all-factors",
        description="all-factors are trained, or, as svd-llm does, LoRA of one factor, then of the "
        "other; a preset of enabled, objective tokens and learning_rate 1e-4",
    )
    order: Order = Field(
        "up-first",
        description="Of svd-llm: the factor that is trained first, or one-pass for both together",
    )
    norms: bool = Field(
        False,
        description="Train the weights of the norms, too, in the layers and after the last; not of "
        "svd-llm",
    )
    lora_rank: int = Field(8, ge=1, description="Of svd-llm: the rank of LoRA, at alpha 16")
    text: Annotated[Texts, Flag("recovery-text", unset="the calibration texts")] = Field(
        (), description="Texts to train on, each with its share, as --calibration"
    )
    tokens: Annotated[int | None, Flag("recovery-tokens", unset="the text once, 8 M at most")] = (
        Field(None, ge=1, description="Tokens to train on; a shorter text is repeated")
    )
    sequence_length: int = Field(1024, ge=2, description="Tokens in a window")
    batch: Annotated[int | None, Flag(unset="what makes 100 steps, 2 to 64")] = Field(
        None, ge=1, description="Windows in a step, of all workers together"
    )
    micro_batch: int = Field(4, ge=1, description="Windows that a worker computes at once")
    learning_rate: float = Field(
        5e-5, gt=0.0, description="Of AdamW, after warm-up; it falls linearly to zero"
    )
    warmup: float = Field(0.1, ge=0.0, lt=1.0, description="Share of the steps for warm-up")
    clip: float = Field(1.0, gt=0.0, description="Largest norm of a step's gradient")
    objective: Objective = Field(
        "kl",
        description="What is minimised: kl from the base's next tokens, tokens (their loss alone), "
        "or hidden (distance of the last hidden states)",
    )
    held_out: int = Field(
        8, ge=1, description="Windows that are not trained on and say which state is best"
    )
    evaluations: int = Field(10, ge=1, description="Looks at the held-out windows")
    patience: int = Field(
        3, ge=1, description="Looks in a row without progress that end it; each halves the rate"
    )
    checkpointing: bool = Field(
        True, description="Compute each layer twice instead of keeping what is within it"
    )
    offload: Annotated[bool | None, Flag(unset="if the device is too small for them")] = Field(
        None, description="Keep factors and optimiser in host memory, and their steps on the host"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        method = data.get("method") if isinstance(data, dict) else None
        return METHODS[method] | data if isinstance(method, str) and method in METHODS else data

    @model_validator(mode="after")
    def _no_norms_beside_updates(self) -> Self:
        if self.norms and self.rank_of_updates:
            raise ValueError(
                "recovery.norms trains weights themselves, --recovery svd-llm updates of factors "
                "alone; ask for one of them"
            )
        return self

    @property
    def unusual(self) -> list[str]:
        """The settings that differ from what the method presets, but for the length of windows,
        which follows the model; the method, if it was named alone and presets nothing.
        """
        usual = RecoveryConfig.model_validate({"method": self.method})
        in_vain = self.model_fields_set & {"method", "enabled"} == {"method"}
        return ["method"] * in_vain + [
            name
            for name in RecoveryConfig.model_fields
            if name not in ("enabled", "sequence_length")
            and getattr(self, name) != getattr(usual, name)
        ]

    @property
    def taught(self) -> bool:
        """Whether the objective needs the base's last hidden states."""
        return self.objective != "tokens"

    @property
    def rank_of_updates(self) -> int | None:
        """The rank of the updates that are trained in the place of the factors, if they are."""
        return self.lora_rank if self.enabled and self.method == "svd-llm" else None

    @property
    def phases(self) -> tuple[tuple[Factor, ...], ...]:
        """The factors that are trained together, one phase after the other."""
        return _PHASES[self.order if self.rank_of_updates else "one-pass"]

    def windows_in_all(self, there: int) -> int:
        """Return how many windows are trained on, `there` of which differ; repeated ones count."""
        return max(1, (self.tokens or there * self.sequence_length) // self.sequence_length)

    def windows_in_step(self, there: int) -> int:
        return self.batch or min(max(self.windows_in_all(there) // _STEPS, 2), _LARGEST_BATCH)

    def steps(self, there: int) -> int:
        return max(1, self.windows_in_all(there) // self.windows_in_step(there))
