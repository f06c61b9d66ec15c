"""The configuration of `svdllm evaluate`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.base import Schema
from schemas.request.groups import EVERY_WORKER, ClusterConfig, Device, DType
from schemas.request.settings import Flag


class EvaluationConfig(Schema):
    """Perplexity of a checkpoint, alone or beside the base that it was made from."""

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        description="A local checkpoint folder, a hub id or a URL"
    )
    baseline: str | None = Field(None, description="The base checkpoint to compare with")
    text: str = Field(
        "wikitext2",
        description="A .txt, .jsonl or .parquet file, a known data set (wikitext2, c4, ptb, "
        "slimpajama, fineweb-edu, codeparrot, ultrachat) or a hub id; #FIELD after it is optional",
    )
    sequence_length: int = Field(2048, ge=2, description="Tokens in a window")
    windows: Annotated[int | None, Flag(unset="all")] = Field(
        None, ge=1, description="First windows of the text that are scored"
    )
    dtype: DType = Field("float32", description="Compute type; auto: as the weights are stored")
    device: Device = Field("auto", description="Where to compute; auto: cuda if there is one")
    sample_prompt: str = Field(
        "The city lies on the river", min_length=1, description="Text that each model continues"
    )
    sample_tokens: int = Field(48, ge=1, description="Tokens of that continuation, greedy")
    trust_remote_code: bool = Field(
        False,
        description="Run code that came with a checkpoint; not needed for this program's own",
    )
    streamed: bool = Field(
        False,
        description="Layer shard by layer shard on Ray, with KL and without a sample: no process "
        "holds a whole model",
    )
    workers: Annotated[int | None, Flag(unset=EVERY_WORKER)] = Field(
        None, ge=1, description="Layer-shard workers of a streamed evaluation"
    )
    shard_layers: Annotated[int | None, Flag(unset="what fits")] = Field(
        None, ge=1, description="Most layers of each model that a worker holds"
    )
    work_dir: Annotated[Path | None, Flag(unset="the system's temporary folder")] = Field(
        None,
        description="An existing folder that all nodes see, where hidden states wait if there are "
        "more shards than workers",
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
