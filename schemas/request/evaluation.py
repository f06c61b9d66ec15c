"""The configuration of `svdllm evaluate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.location import LocalPath
from schemas.request.groups import EVERY_WORKER, ClusterConfig, Device, DType
from schemas.request.settings import Flag, Words

PAPER = "paper"
PAPER_TASKS = (
    *("openbookqa", "arc_easy", "arc_challenge", "winogrande", "hellaswag", "piqa", "mathqa"),
    *("truthfulqa_gen", "gsm8k"),
)
"""The tasks of SVD-LLM's tables (arXiv 2403.07378, Table 1) by their names in lm-eval."""

DeviceMap = Literal["auto", "balanced", "sequential"]


class TasksConfig(Request):
    """Tasks of lm-eval, on which models are compared document by document."""

    names: Annotated[Words, Flag("tasks")] = Field(
        (),
        description="Tasks, groups or tags of lm-eval, separated by commas; "
        f"{PAPER}: the nine of SVD-LLM's tables",
    )
    folder: Annotated[LocalPath | None, Flag("task-folder")] = Field(
        None, description="A folder with YAML files of your own tasks"
    )
    limit: Annotated[int | None, Flag("limit", unset="all")] = Field(
        None, ge=1, description="First documents of each task that count"
    )
    fewshot: Annotated[int | None, Flag("fewshot", unset="as each task says")] = Field(
        None, ge=0, description="Solved examples before each document"
    )
    batch_size: Annotated[int | Literal["auto"], Flag("batch-size")] = Field(
        8, description="Texts in one forward pass; auto: the most that fit"
    )
    chat_template: Annotated[bool, Flag("chat-template")] = Field(
        False, description="Ask through the chat template of each tokenizer"
    )
    results: Annotated[
        LocalPath | None, Flag("results", unset="svdllm-tasks; of compare, tasks in its output")
    ] = Field(
        None,
        description="Folder that keeps what each model got on each task; a later command takes it "
        "from there",
    )
    samples: Annotated[LocalPath | None, Flag("samples")] = Field(
        None, description="Also write every document, answer and score to this Parquet file"
    )
    spread: Annotated[bool, Flag("spread")] = Field(
        False, description="Run every model on every task as one job of the Ray cluster"
    )

    @property
    def asked(self) -> tuple[str, ...]:
        """The names, each once, with those that `paper` stands for in its place."""
        groups = [PAPER_TASKS if name == PAPER else (name,) for name in self.names]
        return tuple(dict.fromkeys(name for group in groups for name in group))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError(f"tasks.batch_size {self.batch_size}: 1 or more, or auto")
        given = sorted(
            name
            for name, field in type(self).model_fields.items()
            if name != "names" and getattr(self, name) != field.get_default()
        )
        if given and not self.names:
            raise ValueError(f"{', '.join(given)}: for tasks only; add --tasks")
        return self


class EvaluationConfig(Request):
    """Perplexity and tasks of a checkpoint, alone or beside the base that it was made from."""

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        min_length=1, description="A local checkpoint folder, a hub id or a URL"
    )
    baseline: str | None = Field(
        None, min_length=1, description="The base checkpoint to compare with"
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a baseline that is a hub id"
    )
    text: str = Field(
        "wikitext2",
        min_length=1,
        description="A .txt, .jsonl or .parquet file, a known data set (wikitext2, c4, ptb, "
        "slimpajama, fineweb-edu, codeparrot, ultrachat) or a hub id; #FIELD after it is "
        "optional; beside tasks, only if given",
    )
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    sequence_length: int = Field(2048, ge=2, description="Tokens in a window")
    windows: Annotated[int | None, Flag(unset="all")] = Field(
        None, ge=1, description="First windows of the text that are scored"
    )
    dtype: DType = Field("float32", description="Compute type; auto: as the weights are stored")
    device: Device = Field("auto", description="Where to compute; auto: cuda if there is one")
    device_map: Annotated[DeviceMap | None, Flag(unset="one device")] = Field(
        None,
        description="Lay each model over all GPUs, and over main memory if they are too small, "
        "as transformers does",
    )
    sample_prompt: str = Field(
        "The city lies on the river", min_length=1, description="Text that each model continues"
    )
    sample_tokens: int = Field(48, ge=1, description="Tokens of that continuation, greedy")
    trust_remote_code: bool = Field(
        False, description="Run code that came with a checkpoint; not needed for this program's own"
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
    work_dir: Annotated[LocalPath | None, Flag(unset="the system's temporary folder")] = Field(
        None,
        description="An existing folder that all nodes see, where hidden states wait if there are "
        "more shards than workers",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = [n for n in ("workers", "shard_layers", "work_dir") if getattr(self, n) is not None]
        if named and not self.streamed:
            raise ValueError(f"{', '.join(named)}: for a streamed evaluation only; add --streamed")
        if self.streamed and (self.tasks.names or self.device_map):
            raise ValueError(
                "a streamed evaluation scores a text only; leave out --streamed, or --tasks and "
                "--device-map"
            )
        if self.streamed and self.trust_remote_code:
            raise ValueError(
                "a streamed evaluation runs no code of a checkpoint; leave out --streamed or "
                "--trust-remote-code"
            )
        if self.streamed and (given := self._given("sample_prompt", "sample_tokens")):
            raise ValueError(
                f"{given}: a streamed evaluation writes no sample; leave out --streamed, or this"
            )
        if self.revision is not None and self.baseline is None:
            raise ValueError(f"revision {self.revision}: of a baseline; add --baseline")
        if self.revision is not None and self.baseline == self.checkpoint:
            raise ValueError(
                f"revision {self.revision}: baseline and checkpoint have one name, {self.baseline}"
                "; fetch one of them into a folder"
            )
        of_text = self._given("sequence_length", "windows", "sample_prompt", "sample_tokens")
        if of_text and not self.scores_text:
            raise ValueError(f"{of_text}: for a text only; add --text")
        if self.device_map and self.device != "auto":
            raise ValueError(
                f"device {self.device}: device_map lays a model over all devices; leave out "
                "--device or --device-map"
            )
        return self

    @property
    def models(self) -> list[tuple[str, str | None]]:
        """The name and revision of the baseline, if there is one, and of the checkpoint."""
        base = [] if self.baseline is None else [(self.baseline, self.revision)]
        return [*base, (self.checkpoint, None)]

    def _given(self, *names: str) -> str:
        return ", ".join(name for name in names if name in self.model_fields_set)

    @property
    def scores_text(self) -> bool:
        """Whether perplexity is asked for: always without tasks, else if a text was given."""
        return not self.tasks.names or "text" in self.model_fields_set

    @property
    def cluster(self) -> ClusterConfig:
        """Where a streamed evaluation runs."""
        return ClusterConfig(
            workers=self.workers, shard_layers=self.shard_layers, device=self.device
        )
