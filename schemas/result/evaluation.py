"""The configuration and the result of an evaluation."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from schemas.base import Schema
from schemas.request.config import ClusterConfig, Device, DType


class EvaluateConfig(Schema):
    """Perplexity of a checkpoint, alone or beside the base that it was made from."""

    checkpoint: str = Field(description="A local checkpoint folder, a hub id or a URL")
    baseline: str | None = Field(None, description="The base checkpoint to compare with")
    text: str = Field(
        "wikitext2",
        description="A .txt, .jsonl or .parquet file, a known data set (wikitext2, c4) or a hub id",
    )
    sequence_length: int = Field(2048, ge=2, description="Tokens in a window")
    max_windows: int | None = Field(
        None, ge=1, description="Only the first windows of the text; default: all of it"
    )
    dtype: DType = Field("float32", description="Compute type; auto: as the weights are stored")
    device: Device = Field("auto", description="auto: cuda where there is one")
    sample_prompt: str = Field(
        "The city lies on the river", min_length=1, description="Text that each model continues"
    )
    sample_tokens: int = Field(48, ge=1, description="Tokens of that continuation, greedy")
    trust_remote_code: bool = Field(
        False,
        description="Run code that came with a checkpoint; not needed for this program's own",
    )
    streamed: bool = Field(
        False, description="Layer shard by layer shard on Ray: no process holds a whole model"
    )
    workers: int | None = Field(
        None, ge=1, description="Layer-shard workers; default: every GPU, or the CPU cores (to 8)"
    )
    shard_layers: int | None = Field(
        None, ge=1, description="Most layers of each model that a worker holds; default: what fits"
    )
    work_dir: Path | None = Field(
        None,
        description="An existing folder that all nodes see, where hidden states wait if there are "
        "more shards than workers; default: the system's temporary folder",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = [n for n in ("workers", "shard_layers", "work_dir") if getattr(self, n) is not None]
        if named and not self.streamed:
            raise ValueError(f"{', '.join(named)}: for a streamed evaluation only; add --streamed")
        if self.streamed and self.trust_remote_code:
            raise ValueError(
                "a streamed evaluation runs no code of a checkpoint; leave out --streamed or "
                "--trust-remote-code"
            )
        return self

    @property
    def cluster(self) -> ClusterConfig:
        """Where a streamed evaluation runs."""
        return ClusterConfig(
            workers=self.workers, shard_layers=self.shard_layers, device=self.device
        )


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
        description="Wall time of loading, scoring and the sample; streamed, of all models together"
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
