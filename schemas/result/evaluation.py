"""The result of an evaluation."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.groups import DType


class Speed(Schema):
    """What was measured when a model was scored; see the fields of `ModelEvaluation`."""

    tokens_per_second: float
    seconds: float


class ModelEvaluation(Schema):
    """One model on the text."""

    name: str
    perplexity: float = Field(description="exp(mean_nll)")
    mean_nll: float = Field(description="Negative log likelihood, nats a predicted token")
    windows: int
    predicted_tokens: int = Field(description="windows * (sequence_length - 1)")
    parameters: int = Field(description="Tied parameters counted once")
    bytes_on_disk: int = Field(description="Of the safetensors files")
    stored_dtype: str = Field(
        description="Of the floating-point tensors in them, safetensors' name"
    )
    kl: float | None = Field(
        None,
        description="Mean KL(baseline || this model) in nats a predicted token; only of a streamed "
        "evaluation with a baseline whose vocabulary is of the same size",
    )
    tokens_per_second: float = Field(
        description="Tokens scored in each second of computing; streamed, of one worker, and "
        "without the head",
    )
    sample: str | None = Field(
        description="The prompt and its greedy continuation; none of a streamed evaluation"
    )
    seconds: float = Field(
        description="Wall time of loading, scoring and the sample; streamed, of all models "
        "together, but a run streams the base by itself, once"
    )


class EvaluationReport(Schema):
    """All models on the same tokens; of two, the first is the baseline."""

    text: str
    sequence_length: int
    dtype: DType
    models: tuple[ModelEvaluation, ...] = Field(min_length=1)

    @property
    def nats(self) -> float | None:
        """Increase of the mean token loss from baseline to result; None for one model."""
        if len(self.models) < 2:
            return None
        return self.models[1].mean_nll - self.models[0].mean_nll
