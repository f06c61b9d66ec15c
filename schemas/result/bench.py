"""The result of `svdllm bench`."""

import statistics

from pydantic import Field

from schemas.base import Schema
from schemas.request.bench import Workload


class Timing(Schema):
    """One round of a workload, in seconds."""

    first_token_s: float = Field(description="From the prompts to the first token of each")
    decode_s: float = Field(description="From there to the last tokens")


class Served(Schema):
    """One model under one workload, round by round."""

    workload: Workload
    rounds: tuple[Timing, ...] = Field(min_length=1)

    @property
    def first_token_s(self) -> tuple[float, ...]:
        """Seconds to the first token, of each round."""
        return tuple(timing.first_token_s for timing in self.rounds)

    @property
    def prefill(self) -> tuple[float, ...]:
        """Tokens of prompts read in each second, of each round."""
        return tuple(
            self.workload.batch * self.workload.in_round(at).prompt_tokens / timing.first_token_s
            for at, timing in enumerate(self.rounds)
        )

    @property
    def decode(self) -> tuple[float, ...]:
        """Tokens written in each second after the first ones, of each round."""
        tokens = self.workload.batch * (self.workload.new_tokens - 1)
        return tuple(tokens / timing.decode_s for timing in self.rounds)


class BenchedModel(Schema):
    """One model."""

    name: str
    parameters: int = Field(description="Tied parameters counted once")
    bytes_on_disk: int = Field(description="Of the safetensors files")
    stored_dtype: str = Field(description="Of the floating-point tensors in them")
    load_s: float = Field(
        description="Seconds from the files to the answer to a prompt of one token"
    )
    peak_bytes: int | None = Field(
        description="Most memory taken from the loading of the model to its last workload: on a "
        "GPU of the device, else resident, files that are mapped included. None if the engine "
        "takes all that it may"
    )
    served: tuple[Served, ...] = Field(min_length=1)


class BenchReport(Schema):
    """All models under the same workloads; of several, the first is the baseline."""

    engine: str = Field(description="With its version, as 'transformers 5.23.0'")
    device: str
    threads: int
    dtype: str
    compiled: bool
    in_turn: bool = Field(
        True, description="Whether models took turns; else each was alone on a worker of a cluster"
    )
    models: tuple[BenchedModel, ...] = Field(min_length=1)

    @property
    def setting(self) -> str:
        """What served, in which dtype, and where."""
        compiled = ", compiled" if self.compiled else ""
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.engine}{compiled}, {self.dtype}, {self.device}{threads}"


def over(figures: tuple[float, ...], others: tuple[float, ...]) -> float:
    """Return the median over the rounds of a figure over the other one of the same round."""
    return statistics.median(mine / other for mine, other in zip(figures, others, strict=True))
