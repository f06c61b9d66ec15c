"""The configuration of a run; flags, YAML and Python all build the same `RunConfig`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.base import Schema
from schemas.location import Location, Url, is_within
from schemas.model.spec import Factors
from schemas.printable import has_credentials
from schemas.request.methods import (
    ALLOCATIONS,
    METHODS,
    TRUNCATIONS,
    Allocation,
    Method,
    Truncation,
)
from schemas.request.sizes import Size

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
OnFailure = Literal["fail", "keep_dense"]


class CalibrationConfig(Schema):
    """The text whose statistics decide what is kept, and how it is streamed."""

    text: str = Field(
        "wikitext2",
        description="A .txt, .jsonl or .parquet file, a known data set (wikitext2, c4) or a hub id",
    )
    samples: int = Field(256, ge=1, description="Windows of text for the forward moments")
    sequence_length: int = Field(2048, ge=2, description="Tokens in each of these windows")
    gradient_samples: int | None = Field(
        None,
        ge=0,
        description="Windows of text for the gradient moments; default: 16 tokens for each "
        "dimension of the widest one, and at least 32",
    )
    gradient_length: int = Field(512, ge=2, description="Tokens in each of these windows")
    micro_batch: int = Field(1, ge=1, description="Windows that travel together (changes rounding)")
    segments: int = Field(
        8, ge=1, description="Parts summed in float32, then combined exactly (changes rounding)"
    )


class NumericsConfig(Schema):
    """Settings that change numbers, and nothing else."""

    dtype: DType = Field(
        "auto",
        description="Compute type; auto: float32 on CPU, on CUDA the checkpoint's, but bfloat16 "
        "for float16, whose range gradients leave",
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of a worker (BLAS rounding depends on it)"
    )
    shrinkage: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="s in G_s = (1 - s) G + s (tr G / m) I, for fisher; default: chosen for each "
        "matrix by its noise (Ledoit and Wolf)",
    )
    pivot_bound: float = Field(
        1e3, gt=0.0, description="Largest magnitude in T of pivoted factors; past it, plain ones"
    )


class AllocationConfig(Schema):
    """How ranks are shared out among matrices."""

    method: Allocation = Field("loss-aware", description="How ranks are shared out among matrices")
    max_ratio: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="Most of one matrix that svd-llm-v2 removes: its formula has no bound",
    )


class ClusterConfig(Schema):
    """Where the work runs. Nothing here changes a number, except the kind of device."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Layer-shard workers; default: every GPU, or the CPU cores (up to 8)",
    )
    shard_layers: int | None = Field(
        None, ge=1, description="Most layers that a worker holds at once; default: what fits"
    )
    replicas: int | None = Field(
        None, ge=1, description="Copies of the chain of workers; default: what is fastest"
    )
    keep_bases: bool = Field(
        True,
        description="Keep every basis in the run directory; without, less disk, and a matrix is "
        "factorised once more whenever it is cut",
    )
    device: Device = Field("auto", description="auto: cuda where the workers have it")
    address: str | None = Field(
        None,
        description="A running Ray cluster; default: that of the Ray job, else an embedded one",
    )
    storage_read: Size = Field(
        6 * 10**9,
        description="What a plan assumes that all nodes together read from storage, in bytes a "
        "second, as 6GB",
    )
    storage_write: Size = Field(3 * 10**9, description="And that they write")
    item_timeout_s: float = Field(
        3600.0, gt=0, description="Longest wait for one micro-batch or one matrix, in seconds"
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Losses of workers in a row, without progress between, or starts of workers "
        "that fail alike, that end a run",
    )

    @field_validator("address")
    @classmethod
    def _without_credentials(cls, value: str | None) -> str | None:
        if value is not None and has_credentials(value):
            raise ValueError("carries credentials, which would be recorded; use RAY_AUTH_TOKEN")
        return value


class EvaluationConfig(Schema):
    """The text on which base and result are compared before a result is published."""

    text: str | None = Field(
        None,
        description="As calibration.text, or none; default: the evaluation split of a known data "
        "set of the calibration, else none",
    )
    sequence_length: int = Field(2048, ge=2, description="Tokens in a window")
    windows: int = Field(32, ge=1, description="First windows of the text that are scored")


class RunConfig(Schema):
    """One compression run: `compress(RunConfig(model=..., ratio=0.2, output=...))`.

    `ratio` is the fraction of the targeted parameters REMOVED, as in the papers.
    """

    model: str = Field(description="A local checkpoint folder, a hub id or a URL (s3://, gs://)")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    output: Location = Field(description="Folder or URL of the compressed checkpoint")
    run_dir: Location | None = Field(
        None, description="Folder or URL of the run; default OUTPUT.run, none for a URL"
    )
    ratio: tuple[Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)], ...] = Field(
        description="Fraction of the targeted parameters removed; one or several"
    )
    method: Method = Field("two-sided", description="A preset of the next three")
    truncation: Truncation = Field("fisher", description="How a matrix is cut at a rank")
    allocation: AllocationConfig = AllocationConfig()
    factors: Factors = Field("pivoted", description="How a cut matrix is stored")
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of sampled labels")
    on_failure: OnFailure = Field(
        "fail",
        description="When a matrix cannot be cut: fail, or keep_dense (the others are cut more)",
    )
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    numerics: NumericsConfig = NumericsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        method = data.get("method")
        preset = METHODS["two-sided"]
        if isinstance(method, str) and method in METHODS:
            preset = METHODS[method]
        given = {key: value for key, value in data.items() if value is not None}
        allocation = {"method": preset["allocation"]}
        if isinstance(asked := given.get("allocation", {}), dict):
            given["allocation"] = allocation | asked
        return preset | given

    @field_validator("ratio", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("ratio")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("name at least one ratio")
        if len({f"{ratio:.2f}" for ratio in value}) != len(value):
            raise ValueError(
                f"{', '.join(map(str, value))} do not differ in their first two decimals, which "
                "name the folders of the outputs; ask for them in separate runs"
            )
        return value

    @model_validator(mode="after")
    def _folders_apart(self) -> Self:
        if isinstance(self.output, Url) and self.run_dir is None:
            raise ValueError(
                f"output {self.output} is in an object store; name a run directory with --run-dir: "
                "a folder that all nodes share, or a URL"
            )
        for one, other in ((self.output, self.run_folder), (self.run_folder, self.output)):
            if is_within(one, other):
                raise ValueError(
                    f"output {self.output} and run_dir {self.run_folder}: neither may be inside "
                    "the other; name another --run-dir"
                )
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.needs_gradients and self.calibration.gradient_samples == 0:
            raise ValueError(
                f"truncation {self.truncation} with allocation {self.allocation.method} needs "
                "gradients, but calibration.gradient_samples is 0; ask for some, or use "
                "--truncation input-only --allocation uniform"
            )
        if self.needs_gradients and self.numerics.dtype == "float16":
            raise ValueError(
                "numerics.dtype is float16, whose range gradients leave: they would be zero; use "
                "--dtype bfloat16 or float32"
            )
        weighed = TRUNCATIONS[self.truncation].weighed
        if weighed and ALLOCATIONS[self.allocation.method].layer_outputs:
            raise ValueError(
                f"allocation {self.allocation.method} needs losses in units of layer outputs, but "
                f"truncation {self.truncation} measures nats; use --allocation loss-aware, or "
                "another --truncation"
            )
        return self

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration includes a backward stream."""
        return TRUNCATIONS[self.truncation].weighed or ALLOCATIONS[self.allocation.method].nats

    @property
    def fetched(self) -> Path:
        """Folder for the small files of a model in an object store: in the run directory if that
        is a folder, else in the home folder on each node, where nobody else writes.
        """
        if isinstance(self.run_folder, Path):
            return self.run_folder / "base"
        return Path.home() / ".cache" / "svdllm"

    @property
    def run_folder(self) -> Path | Url:
        """Folder or prefix of the run's artefacts."""
        return self.run_dir or Path(f"{self.output}.run")

    def output_folder(self, ratio: float) -> Path | Url:
        """Folder or URL of the checkpoint at one of the ratios."""
        return self.output if len(self.ratio) == 1 else self.output / f"ratio-{ratio:.2f}"
