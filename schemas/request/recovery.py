"""The settings of recovery: how the factors are trained after truncation."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from schemas.base import Schema
from schemas.request.settings import Flag, Words

Objective = Literal["kl", "tokens", "hidden"]
"""What is minimised: KL(base || student) of the next token, its cross-entropy with the text, or the
squared distance of the last hidden states relative to the base's.
"""


class RefinementConfig(Schema):
    """Training of the factors of each layer alone, before recovery or instead of it: the layer is
    to give what the base's gives (AA-SVD: arXiv 2604.02119).
    """

    enabled: Annotated[bool, Flag("refine")] = Field(
        False, description="Train the factors of each layer alone after truncation"
    )
    windows: int = Field(24, ge=1, description="First windows of the recovery text to train on")
    passes: int = Field(3, ge=1, description="How often each of them is taken")
    batch: int = Field(1, ge=1, description="Windows in a step, of all workers together")
    learning_rate: float = Field(1e-4, gt=0.0, description="Of AdamW, constant")


MOST_TOKENS = 8 * 2**20  # to train on, if no number is asked for
_STEPS, _LARGEST_BATCH = 100, 64
MIXED = "mixed"
_MIXTURE = {"fineweb-edu": 0.5, "codeparrot": 0.2, "ultrachat": 0.3}  # web, code, instructions


class RecoveryConfig(Schema):
    """Training of the factors after truncation; everything else of the model is frozen.

    The base is the teacher (knowledge distillation: Hinton et al., arXiv 1503.02531). SVD-LLM
    (section 3.2) updates the factors after truncation, too, by LoRA on the text alone.
    """

    enabled: Annotated[bool, Flag("recover")] = Field(
        False, description="Train the factors against the base after truncation"
    )
    text: Annotated[Words, Flag("recovery-text", unset="the calibration text")] = Field(
        (),
        description="Texts to train on, as --calibration, each with its share: a.txt:0.7,c4:0.3; "
        "mixed is web, code and instructions from the hub",
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
    patience: int = Field(3, ge=1, description="Looks without progress that end it")
    checkpointing: bool = Field(
        True, description="Compute each layer twice instead of keeping what is within it"
    )

    offload: Annotated[bool | None, Flag(unset="if the device is too small for them")] = Field(
        None, description="Keep factors and optimiser in host memory, and their steps on the host"
    )

    @field_validator("text")
    @classmethod
    def _shares(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for one in value for text in _without_presets(one))

    @property
    def taught(self) -> bool:
        """Whether the objective needs the base's last hidden states."""
        return self.objective != "tokens"

    def windows_in_all(self, there: int) -> int:
        """Return how many windows are trained on, `there` of which differ; repeated ones count."""
        return max(1, (self.tokens or there * self.sequence_length) // self.sequence_length)

    def windows_in_step(self, there: int) -> int:
        """Return the windows of a step."""
        return self.batch or min(max(self.windows_in_all(there) // _STEPS, 2), _LARGEST_BATCH)

    def steps(self, there: int) -> int:
        """Return the number of steps."""
        return max(1, self.windows_in_all(there) // self.windows_in_step(there))


def _without_presets(text: str) -> list[str]:
    """Return a text with its share as it is, but the mixture as the texts that it consists of.

    Raises ValueError as `share_of` does.
    """
    name, share = share_of(text)
    if name != MIXED:
        return [text]
    return [f"{part}:{share * of_it:g}" for part, of_it in _MIXTURE.items()]


def share_of(text: str) -> tuple[str, float]:
    """Split "c4:0.3" in the name of a text and its share; 1 if it has none.

    Raises ValueError if the share is not a positive number.
    """
    name, _, share = text.rpartition(":")
    try:
        found = float(share)
    except ValueError:  # a name with a colon in it, or without one
        return text, 1.0
    if not 0 < found < float("inf"):
        raise ValueError(f"{text}: the share after the colon must be above zero")
    return name, found
