"""The configuration of `svdllm bench`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.request.groups import Address, ClusterConfig, Device
from schemas.request.settings import Counts, Flag, Words


class Workload(Request):
    """Sequences that are served at once: their number, and the tokens of each."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    new_lengths: bool = False

    def in_round(self, number: int) -> Self:
        """Return what is served in this round, from 0 on: itself, or if lengths are to be new, the
        same with prompts a token shorter than in the round before.
        """
        shorter = number + 1 if self.new_lengths else 0
        return self.model_copy(update={"prompt_tokens": self.prompt_tokens - shorter})

    @property
    def words(self) -> str:
        """What people call it."""
        new = ", new lengths" if self.new_lengths else ""
        return f"{self.batch} × ({self.prompt_tokens} + {self.new_tokens}) tokens{new}"


class BenchConfig(Request):
    """Speed and memory of a checkpoint as it is served, alone or beside its base."""

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        min_length=1, description="A local checkpoint folder, a hub id or a URL"
    )
    baseline: str | None = Field(
        None, min_length=1, description="The base checkpoint to compare with"
    )
    also: Words = Field((), description="More checkpoints for the same run, separated by commas")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What serves; vllm must be installed in the same Python"
    )
    address: Annotated[Address | None, Flag(unset="this machine")] = Field(
        None,
        description="A running Ray cluster: all models at once, each on a GPU of its own, or "
        "without GPUs on CPUs",
    )
    batch: Counts = Field((1, 8), description="Sequences at once; one or several, as 1,8")
    prompt_tokens: Counts = Field((512,), description="Tokens of each prompt; one or several")
    new_tokens: Counts = Field((32,), description="Tokens to follow each prompt; one or several")
    rounds: int = Field(5, ge=1, description="Times that each figure is taken, the models in turn")
    new_lengths: bool = Field(
        False,
        description="Shorten the prompts by a token before each round, so that their length is new "
        "to the process, as most are to a server",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Compute type of both models"
    )
    device: Device = Field("auto", description="Where to compute; auto: cuda if there is one")
    threads: Annotated[int | None, Flag(unset="every core")] = Field(
        None, ge=1, description="CPU threads"
    )
    compiled: bool = Field(
        False,
        description="Compile the forward by torch.compile, with CUDA graphs on a GPU, and keep "
        "keys and values in a cache of fixed size",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that came with a checkpoint; not needed for this program's own"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if min(self.new_tokens) < 2:
            raise ValueError("new_tokens: 2 at least, as the first one belongs to the prompt")
        if self.engine == "vllm" and (self.device != "auto" or self.threads):
            raise ValueError("vllm chooses device and threads itself; leave both out")
        if self.new_lengths and (self.engine == "vllm" or self.compiled):
            raise ValueError("new_lengths is of transformers, eager; leave it or the other out")
        if self.new_lengths and min(self.prompt_tokens) <= self.rounds:
            raise ValueError("new_lengths: ask for more prompt_tokens than there are rounds")
        return self

    @property
    def models(self) -> list[str]:
        """The baseline, if there is one, and every checkpoint."""
        return [*([self.baseline] if self.baseline else []), self.checkpoint, *self.also]

    @property
    def cluster(self) -> ClusterConfig:
        """Where models are served if an address is given."""
        return ClusterConfig(address=self.address, device=self.device)

    @property
    def workloads(self) -> list[Workload]:
        """Every batch size with every length of a prompt and of what follows it."""
        return [
            Workload(
                batch=batch, prompt_tokens=prompt, new_tokens=new, new_lengths=self.new_lengths
            )
            for prompt in self.prompt_tokens
            for new in self.new_tokens
            for batch in self.batch
        ]
