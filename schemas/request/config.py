"""The configuration of a run; flags, YAML and Python all build the same `RunConfig`."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from schemas.location import Location, Url, kept_at_home
from schemas.request.budget import OPTIONS, BudgetConfig
from schemas.request.compression import CompressionConfig, Ratio
from schemas.request.settings import SEVERAL, Flag

ROUNDS = "rounds"  # the folder of earlier rounds in a run directory


class RunConfig(CompressionConfig):
    """One compression run: `compress(RunConfig(model=..., ratio=0.2, output=...))`."""

    model: str = Field(
        min_length=1, description="A local checkpoint folder, a hub id or a URL (s3://, gs://)"
    )
    output: Location = Field(description="Folder or URL of the compressed checkpoint")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id")
    run_dir: Annotated[Location | None, Flag(unset="OUTPUT.run, none for a URL")] = Field(
        None, description="Folder or URL of the run"
    )
    adopt: Annotated[Location | None, Flag(hidden=True)] = Field(
        None,
        description="A finished checkpoint whose factors are trained, instead of cutting the "
        "matrices: what `svdllm recover` sets; if there are several rounds, the one that is cut "
        "further",
    )

    budget: BudgetConfig = BudgetConfig()
    ratio: Annotated[tuple[Ratio, ...], SEVERAL, Flag(unset="that of a budget")] = Field(
        (), description="Fraction of the targeted parameters REMOVED; one or several, as 0.2,0.4"
    )

    @model_validator(mode="before")
    @classmethod
    def _ratio_or_budget(cls, data: Any) -> Any:
        """Let the ratio be found by a budget; else it is missing where nobody names it."""
        if not isinstance(data, dict) or data.get("ratio") not in (None, (), []):
            return data
        budget = data.get("budget")
        asked = budget.model_dump() if isinstance(budget, BudgetConfig) else budget
        given = {name: value for name, value in data.items() if name != "ratio"}
        found = isinstance(asked, dict) and any(asked.get(name) is not None for name in OPTIONS)
        return given if found else given | {"ratio": ()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.ratio and self.budget.asked:
            raise ValueError(
                f"{self.budget.option}: a budget finds the ratio; leave out --ratio, or the budget"
            )
        if self.budget.measured and self.trains:
            raise ValueError(
                f"{self.budget.option}: its trials are measured without --refine and --recover; "
                "find the ratio first, then train at it with `svdllm recover`"
            )
        if self.trains and 0 in self.ratio and not any(self.ratio_by.values()):
            raise ValueError(
                "ratio 0: nothing is cut, so --refine and --recover have nothing to train; leave "
                "it out"
            )
        if self.adopt is not None and not (self.trains and len(self.ratio) == 1):
            raise ValueError(
                f"adopt {self.adopt}: a checkpoint has one ratio, and its factors are adopted to "
                "be trained; use `svdllm recover`"
            )
        if isinstance(self.output, Url) and self.run_dir is None:
            raise ValueError(
                f"output {self.output} is in an object store; name a run directory with --run-dir: "
                "a folder that all nodes share, or a URL"
            )
        return self

    @property
    def calibrates(self) -> bool:
        """Whether matrices are cut, by statistics of a text; else factors are adopted."""
        return self.adopt is None or self.rounds > 1

    def in_rounds(self) -> tuple["RunConfig", ...]:
        """Return the runs that a request of several rounds consists of, the last one in its places.

        Each keeps the same share of the parameters that the one before it has left: after round i
        of n, keep ** (i / n) of them. It adopts that one's checkpoint.
        """
        place, found = self.run_folder / ROUNDS, list[RunConfig]()
        for number in range(1, self.rounds + 1):
            here = place / str(number)
            update: dict[str, Any] = {"rounds": number}
            if number > 1:
                update["adopt"] = found[-1].output
            if number < self.rounds:
                share = number / self.rounds
                by = {name: _of_round(ratio, share) for name, ratio in self.ratio_by.items()}
                update |= {"output": here / "checkpoint", "run_dir": here / "run"}
                update |= {"ratio": (_of_round(self.ratio[0], share),), "ratio_by": by}
            found.append(self.model_copy(update=update))
        return tuple(found)

    @property
    def needs_gradients(self) -> bool:
        """Whether calibration includes a backward stream."""
        return self.calibrates and super().needs_gradients

    @property
    def fetched(self) -> Path:
        """Folder for the small files of a model in an object store: in the run directory if that
        is a folder, else in the home folder on each node, where nobody else writes.
        """
        if isinstance(self.run_folder, Path):
            return self.run_folder / "base"
        return kept_at_home()

    @property
    def run_folder(self) -> Location:
        """Folder or prefix of the run's artefacts."""
        return self.run_dir or Path(f"{self.output}.run")

    def output_folder(self, ratio: float) -> Location:
        """Folder or URL of the checkpoint at one of the ratios."""
        return self.output if len(self.ratio) <= 1 else self.output / f"ratio-{ratio:.2f}"

    @property
    def outputs(self) -> list[Location]:
        """Folders or URLs of all its checkpoints: one at a ratio that a budget is to find."""
        return [*map(self.output_folder, self.ratio)] or [self.output]


def _of_round(ratio: float, share: float) -> float:
    """Return the ratio of a round, `share` of which are done with it, to four decimals."""
    kept: float = (1 - ratio) ** share
    return round(1 - kept, 4)
