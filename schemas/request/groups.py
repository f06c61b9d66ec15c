"""Groups of settings of a run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_serializer

from schemas.base import Request
from schemas.printable import has_credentials
from schemas.request.methods import Allocation
from schemas.request.settings import Flag, Words
from schemas.request.sizes import Size
from schemas.request.texts import Texts

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
EVERY_WORKER = "every GPU, or the CPU cores (up to 8)"
OF_METHOD = "that of the method"


def _without_credentials(address: str) -> str:
    if has_credentials(address):
        raise ValueError("carries credentials, which would be recorded; use RAY_AUTH_TOKEN")
    return address


Address = Annotated[str, AfterValidator(_without_credentials)]
"""Of a Ray cluster."""


class CalibrationConfig(Request):
    """The text whose statistics decide what is kept, and how it is streamed."""

    text: Annotated[Texts, Flag("calibration")] = Field(
        ("wikitext2",),
        min_length=1,
        description="A .txt, .jsonl or .parquet file, a known data set (wikitext2, c4, ptb, "
        "slimpajama, fineweb-edu, codeparrot, ultrachat) or a hub id; #FIELD after it is optional. "
        "Or several, each with its share: a.txt:0.7,c4:0.3; mixed is web, code and instructions",
    )
    samples: Annotated[int, Flag("calibration-samples")] = Field(
        256, ge=1, description="Windows of text for the forward moments"
    )
    sequence_length: Annotated[int, Flag("sequence-length")] = Field(
        2048, ge=2, description="Tokens in each of these windows"
    )
    gradient_samples: Annotated[
        int | None,
        Flag(
            "gradient-samples",
            unset="64 tokens a dimension of the widest moment, 128 windows at least, or the tokens "
            "of the forward moments if these are fewer",
        ),
    ] = Field(None, ge=0, description="Windows of text for the gradient moments")
    gradient_length: Annotated[int, Flag("gradient-length")] = Field(
        512, ge=2, description="Tokens in each of these windows"
    )
    micro_batch: int = Field(1, ge=1, description="Windows that travel together (changes rounding)")
    segments: int = Field(
        8, ge=1, description="Parts summed in float32, then combined exactly (changes rounding)"
    )

    @field_serializer("text")
    def _as_a_line(self, value: tuple[str, ...]) -> str:
        return ",".join(value)  # as people write it, and as files had it when there was one text


class TargetsConfig(Request):
    """Which matrices of the decoder layers are cut, and whether the head is, if it is named.

    Routers of experts never are.

    A pattern is some consecutive parts of a dotted name, as mlp.down_proj or layers.0.*.
    """

    only: Annotated[Words, Flag("targets", unset="all")] = Field(
        ("*",),
        description="Patterns of the matrices to cut, as mlp.down_proj or layers.0.*; the head "
        "only by its own, as in *,lm_head",
    )
    ignore: Annotated[Words, Flag("ignore")] = Field(
        (), description="Patterns of matrices that stay as they are"
    )
    min_features: int = Field(
        16, ge=1, description="Matrices with fewer rows or columns stay as they are"
    )
    skip_first: int = Field(0, ge=0, description="First layers that stay as they are")
    skip_last: int = Field(0, ge=0, description="Last layers that stay as they are")


class NumericsConfig(Request):
    """Settings that change numbers, and nothing else."""

    dtype: Annotated[DType, Flag("dtype")] = Field(
        "auto",
        description="Compute type; auto: float32 on CPU, on CUDA the checkpoint's, but bfloat16 "
        "for float16, whose range gradients leave",
    )
    threads: int = Field(
        1, ge=1, description="CPU threads of a worker (BLAS rounding depends on it)"
    )
    shrinkage: Annotated[
        float | None, Flag(unset="chosen for each matrix by its noise (Ledoit and Wolf)")
    ] = Field(None, ge=0.0, le=1.0, description="s in G_s = (1 - s) G + s (tr G / m) I, for fisher")
    input_shrinkage: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="s in C_s = (1 - s) C + s diag C, for fisher: how much less correlated than in "
        "the calibration text the inputs of a layer are taken to be, for the sake of other text",
    )
    neuron_floor: float = Field(
        0.02,
        ge=0.0,
        description="t in C_s + t (tr C / q) I, if neurons are removed: energy that each of the q "
        "is taken to have beside that in the calibration text, for those that fire rarely there",
    )
    pivot_bound: float = Field(
        1e3, gt=0.0, description="Largest magnitude in T of pivoted factors; past it, plain ones"
    )


class AllocationConfig(Request):
    """How ranks are shared out among matrices."""

    method: Annotated[Allocation, Flag("allocation", unset=OF_METHOD)] = Field(
        "loss-aware", description="How ranks are shared out among matrices"
    )
    min_ratio: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="Least of one matrix that loss-aware removes by a lower rank, else it stays "
        "dense: two products in the place of one cost time, which smaller ones have to save",
    )
    max_ratio: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="Most of one matrix that svd-llm-v2 removes: its formula has no bound",
    )
    rank_multiple: Annotated[int | None, Flag("rank-multiple", unset="64 on CUDA, 32 on CPU")] = (
        Field(
            None,
            ge=1,
            description="Every rank is a multiple of it, as tiles of a GPU and kernels of a CPU "
            "want; of a smaller one in a matrix that would have few such ranks",
        )
    )

    @property
    def multiple(self) -> int:
        """What every rank is a multiple of; any rank will do if nobody chose."""
        return self.rank_multiple or 1


class ClusterConfig(Request):
    """Where the work runs. Nothing here changes a number, except the kind of device."""

    workers: Annotated[int | None, Flag("workers", unset=EVERY_WORKER)] = Field(
        None, ge=1, description="Layer-shard workers"
    )
    shard_layers: Annotated[int | None, Flag(unset="what fits")] = Field(
        None, ge=1, description="Most layers that a worker holds at once"
    )
    replicas: Annotated[int | None, Flag(unset="what is fastest")] = Field(
        None, ge=1, description="Copies of the chain of workers"
    )
    keep_bases: bool = Field(
        True,
        description="Keep every basis in the run directory; without, less disk, and a matrix is "
        "factorised once more whenever it is cut",
    )
    device: Annotated[Device, Flag("device")] = Field(
        "auto", description="Where to compute; auto: cuda if the workers have it"
    )
    address: Annotated[Address | None, Flag(unset="that of the Ray job, else an embedded one")] = (
        Field(None, description="A running Ray cluster")
    )
    storage_read: Annotated[Size, Flag("storage-read")] = Field(
        6 * 10**9,
        description="What a plan assumes that all nodes together read from storage, in bytes a "
        "second, as 6GB",
    )
    storage_write: Annotated[Size, Flag("storage-write")] = Field(
        3 * 10**9,
        description="What a plan assumes that they write to it, in bytes a second, as 3GB",
    )
    item_timeout_s: float = Field(
        3600.0, gt=0, description="Longest wait for one micro-batch or one matrix, in seconds"
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Losses of workers in a row, without progress between, or starts of workers "
        "that fail alike, that end a run",
    )


class EvaluationTextConfig(Request):
    """The text on which base and result are compared before a result is published."""

    text: Annotated[
        str | None, Flag("evaluate", unset="evaluation split of a known calibration set, else none")
    ] = Field(
        None,
        min_length=1,
        description="A text to compare base and result on, named as for --calibration, or none",
    )
    sequence_length: int = Field(2048, ge=2, description="Tokens in a window")
    windows: int = Field(32, ge=1, description="First windows of the text that are scored")
