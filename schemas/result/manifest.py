"""The descriptions in a compressed checkpoint, and the result of a run."""

from typing import Literal

from pydantic import Field

from schemas.base import Schema
from schemas.location import Location
from schemas.request.groups import CalibrationConfig, NumericsConfig, TargetsConfig
from schemas.result.budget import BudgetResult
from schemas.result.evaluation import EvaluationReport, Generation
from schemas.result.output import MatrixResult
from schemas.result.recovery import RecoveryResult
from schemas.run.identity import Identities
from schemas.run.stages import StageName

FORMAT: Literal["svdllm"] = "svdllm"


class FileEntry(Schema):
    """One file of the checkpoint."""

    sha256: str
    bytes: int


class Manifest(Schema):
    """manifest.json: every file except itself and _SUCCESS, and what they depend on.

    `base_files` has the SHA-256 of the base's config.json and weight files; a weight file in an
    object store has the store's own identity, such as "etag:...", which needs no read. Those of
    a base that was only quantised are empty.
    """

    format: Literal["svdllm"] = FORMAT
    output: str
    identities: Identities
    base_files: dict[str, str]
    versions: dict[str, str]
    files: dict[str, FileEntry]


class Compression(Schema):
    """compression.json: what was done, to which matrix, and what it cost.

    `ratio` is the fraction of the targeted parameters asked to be removed (`ratio_by` has others
    for some matrices), `keep` = 1 - ratio, and `removed` the fraction actually removed, which is
    more if ranks have to be multiples of `rank_multiple`. `nats` is the predicted increase of the
    mean token loss. `given_up` are matrices that had to stay dense, each with its error; `wide`
    names the neurons that a device had no room to order. Losses of
    matrices are before `recovery`, if there was one. `adopted` is the identity of the checkpoint
    whose factors it began with, if they were not cut by this run, or that it has cut further: then
    `cut_before` are the ratios of the rounds before this one, and losses and `nats` are those of
    this cut alone. `earlier` are the recoveries that had trained that checkpoint. `exported` is the
    identity of the checkpoint that this one stores in another form; `rounding` then covers both.
    `budget` tells how `ratio` was found, if it was not asked for. If
    the factors were quantised by a `scheme`, quantization.json tells how, and `bytes_after` is what
    is left then.
    """

    model: str
    model_type: str
    ratio: float
    keep: float
    removed: float
    method: dict[str, str]
    targeted_before: int
    targeted_after: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    nats: float | None
    rank_multiple: int = 1
    ratio_by: dict[str, float] = Field(default_factory=dict)
    targets: TargetsConfig = TargetsConfig()
    dequantize: bool = False
    calibration: CalibrationConfig
    numerics: NumericsConfig
    seed: int
    device: str
    dtype: str
    fallbacks: tuple[str, ...]
    given_up: dict[str, str] = Field(default_factory=dict)
    wide: tuple[str, ...] = ()
    recovery: RecoveryResult | None = None
    adopted: str | None = None
    cut_before: tuple[float, ...] = ()
    earlier: tuple[RecoveryResult, ...] = ()
    exported: str | None = None
    budget: BudgetResult | None = None
    scheme: str | None = None
    matrices: tuple[MatrixResult, ...]

    @property
    def recoveries(self) -> tuple[RecoveryResult, ...]:
        """Every recovery that has trained it, the first one first."""
        return (*self.earlier, *(() if self.recovery is None else (self.recovery,)))

    @property
    def own_norms(self) -> bool:
        """Whether its norms were trained, and are not the base's any more."""
        return any(one.config.norms for one in self.recoveries)


class Check(Schema):
    """One check of a checkpoint; `passed` is None if it was not judged.

    `files` names the faulty files, if the check can tell; `generation` is what a model wrote in it.
    """

    name: str
    passed: bool | None
    detail: str = ""
    files: tuple[str, ...] = ()
    generation: Generation | None = None


class OutputResult(Schema):
    """One finished checkpoint; `evaluation` compares it with its base, None without a text."""

    ratio: float
    path: Location
    compression: Compression
    checks: tuple[Check, ...]
    evaluation: EvaluationReport | None = None


class RunResult(Schema):
    """What `compress` returns: a checkpoint per ratio, seconds by stage, and bytes of memory.

    Seconds and busy shares are of the last round. `busy` is the share of a stage's time that each
    worker spent on its items. `worker_peak_bytes` is the most that each held, before and after a
    training and in it; what workers held that died or were replaced is not known.
    """

    outputs: tuple[OutputResult, ...]
    seconds: dict[StageName, float]
    busy: dict[StageName, tuple[float, ...]]
    driver_peak_bytes: int
    worker_peak_bytes: tuple[int, ...]
