"""The configuration of `svdllm nightly`, and the contents of its catalogue and its pointer."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Request, Schema
from schemas.location import Location, is_within
from schemas.request.compression import CompressionConfig
from schemas.request.config import RunConfig
from schemas.request.groups import TargetsConfig
from schemas.request.settings import Flag
from schemas.request.sizes import AS_SHARE

Order = Literal["newest", "oldest"]
Event = Literal[
    "started", "published", "rejected", "failed", "stopped", "quarantined", "retry", "duplicate",
    "removed",
]  # fmt: skip


class Gate(Request):
    """Conditions that an output must meet before `latest` may name it."""

    perplexity: Annotated[float | None, AS_SHARE, Flag("gate", unset="no gate")] = Field(
        None, ge=0.0, description="Largest increase of perplexity over the base, as 5% or 0.05"
    )
    kl: Annotated[float | None, Flag("gate-kl")] = Field(
        None, ge=0.0, description="Largest KL(base || compressed), in nats a token"
    )
    generation: bool = Field(
        True, description="Whether degenerate continuations of texts are a reason, too"
    )
    degenerate: int = Field(
        3,
        ge=0,
        description="Most greedy continuations of a dozen prompts that may be degenerate beyond "
        "those of the base",
    )


class NightlyConfig(CompressionConfig):
    """One night over the checkpoints of a training run.

    `NightlyConfig(watch=..., output=PREFIX, ratio=(0.2, 0.4), max=2)`: how to compress holds for
    every checkpoint.
    """

    watch: str = Field(
        min_length=1,
        description="A folder or URL that holds checkpoints, or a hub id with revisions",
    )
    revision: Annotated[str | None, Flag(unset="main")] = Field(
        None,
        description="Of a hub id: the branch whose commits are watched, or * for every branch and "
        "tag",
    )
    output: Location = Field(description="Folder or URL of checkpoints, catalogue and `latest`")
    run_dir: Annotated[Location | None, Flag(unset="PREFIX/runs")] = Field(
        None, description="Folder or URL of the runs"
    )
    max: int = Field(1, ge=1, description="Most checkpoints that are tried in a night")
    order: Order = Field("newest", description="Which checkpoints come first")
    gate: Gate | None = Field(
        None, description="What an output must keep to before it is published"
    )
    attempts: int = Field(
        3, ge=1, description="Attempts at a checkpoint without success that put it in quarantine"
    )
    keep: Annotated[int | None, Flag(unset="all")] = Field(
        None,
        ge=1,
        description="Newest outputs that stay, of published and of rejected ones, at each ratio",
    )
    retry: tuple[str, ...] = Field(
        (), description="A checkpoint to try again, in quarantine or rejected; may be repeated"
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for place in (self.output, self.output / "checkpoints", self.output / "catalog"):
            inside = place != self.output and is_within(self.runs, place)
            if inside or is_within(place, self.runs):
                raise ValueError(
                    f"run_dir {self.runs}: {place} is kept apart from the runs; name another "
                    "--run-dir"
                )
        if str(self.output) == self.watch:
            raise ValueError(
                f"output {self.output} is what is watched; name another folder with --output"
            )
        return self

    @property
    def runs(self) -> Location:
        """Folder or prefix of the run directories."""
        return self.run_dir or self.output / "runs"

    def request(
        self, model: str, revision: str | None, folder: str, ratios: tuple[float, ...]
    ) -> RunConfig:
        """The configuration to compress one checkpoint at some ratios, in its own `folder`."""
        output = self.output / "checkpoints" / folder
        if len(ratios) == 1:
            output = output / f"ratio-{ratios[0]:.2f}"
        common = {name: getattr(self, name) for name in CompressionConfig.model_fields}
        mine = {"model": model, "revision": revision, "ratio": ratios}
        places = {"output": output, "run_dir": self.runs / folder}
        return RunConfig.model_validate(common | mine | places)

    @property
    def method_settings(self) -> dict[str, object]:
        """Settings that change a result, besides the checkpoint and the ratio."""
        own = {"truncation", "allocation", "factors", "seed", "on_failure"}
        trained = {"refinement"} if self.refinement.enabled else set()
        trained |= {"recovery"} if self.trains else set()  # it has the texts of both
        found = self.model_dump(
            mode="json",
            include=own | trained | {"calibration", "evaluation", "numerics"},
            exclude=None if self.allocation.min_ratio else {"allocation": {"min_ratio"}},
        )
        if self.targets != TargetsConfig():
            found["targets"] = self.targets.model_dump(mode="json")
        if self.ratio_by:
            found["ratio_by"] = list(self.ratio_by.items())  # the first that names a matrix counts
        if self.rounds > 1:
            found["rounds"] = self.rounds
        return found


class CatalogRow(Schema):
    """One event of the catalogue. Events are ordered by `number`; `at` is for people only.

    `key` stands for content and method; sorting by `order` puts a source's oldest name first.
    Events of one ratio have a `ratio`; `path` is relative to the prefix.
    """

    number: int = 0
    at: str = ""
    event: Event
    name: str
    order: str
    key: str
    folder: str
    ratio: float | None = None
    path: str | None = None
    output: str | None = Field(None, description="Identity of the output, as in its manifest")
    detail: str = ""
    base_perplexity: float | None = None
    perplexity: float | None = None
    kl: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    seconds: float | None = None

    @property
    def increase(self) -> float | None:
        """Relative increase of the perplexity."""
        if self.perplexity is None or self.base_perplexity is None:
            return None
        return self.perplexity / self.base_perplexity - 1


class Pointed(Schema):
    """The newest accepted output at one ratio; `path` is relative to the prefix."""

    path: str
    name: str
    order: str
    key: str
    base_perplexity: float | None
    perplexity: float | None
    kl: float | None


class Latest(Schema):
    """latest.json: the newest accepted output at each ratio, with ratios written like 0.20."""

    ratios: dict[str, Pointed]
