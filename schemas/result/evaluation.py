"""The result of an evaluation."""

from pydantic import Field

from schemas.base import Schema
from schemas.request.groups import DType

EARLY = 16  # tokens; a continuation of fewer was ended early


class Speed(Schema):
    """What was measured when a model was scored; see the fields of `ModelEvaluation`."""

    tokens_per_second: float
    seconds: float


class Written(Schema):
    """What a model wrote after a dozen prompts, in the order of `EvaluationReport.prompts`."""

    repetition: float = Field(
        description="seq-rep-4 (Welleck et al., arXiv 1908.04319): share of a continuation's "
        "4-grams of tokens that occurred in it before; mean over the continuations"
    )
    degenerate: int = Field(
        description="Continuations that are empty, a cycle, or of hardly any distinct words"
    )
    early: int = Field(description=f"Continuations that the model ended within {EARLY} tokens")
    texts: tuple[str, ...] = Field(min_length=1, description="The continuations, without prompts")


class Generation(Schema):
    """Continuations of the same prompts, each of up to 64 tokens; the prompts are of several kinds.

    They are sampled at temperature 1 from the nucleus of 95 % (Holtzman et al., arXiv 1904.09751),
    with one seed for all models.
    """

    greedy: Written
    sampled: Written


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
    generation: Generation | None = Field(
        None, description="None if no host could load the model, and of a streamed evaluation"
    )
    seconds: float = Field(
        description="Wall time of loading, scoring and generation; streamed, of all models "
        "together, but a run streams the base by itself, once"
    )


class EvaluationReport(Schema):
    """All models on the same tokens; of two, the first is the baseline."""

    text: str
    text_sha256: str | None = Field(None, description="Of a local file, when a run scored it")
    sequence_length: int
    asked: int | None = Field(
        None, description="Windows that were asked for, of which a short text has fewer; None: all"
    )
    dtype: DType
    prompts: tuple[str, ...] = Field((), description="What the texts of `generation` continue")
    models: tuple[ModelEvaluation, ...] = Field(min_length=1)

    @property
    def nats(self) -> float | None:
        """Increase of the mean token loss from baseline to result; None for one model."""
        if len(self.models) < 2:
            return None
        return self.models[1].mean_nll - self.models[0].mean_nll
