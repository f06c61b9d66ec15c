"""One checkpoint at one ratio, as its stages make it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.run import Run
from schemas.location import Location
from schemas.result.budget import BudgetResult
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import Check, Compression, OutputResult
from schemas.result.output import MatrixResult, OutputFile
from schemas.run.ranks import AllocationResult
from workers.storage.places import files_below, remove


@dataclass
class Output:
    """A checkpoint in the making: each stage reads what earlier ones set, and adds to it.

    `given_up` are matrices that stay dense because they had failed to be cut when it was begun.
    `rows` has the result of every matrix by its name, `files` every weight file by its name.
    `budget` tells how its ratio was found, if a budget was asked for. `staging` is the folder that
    becomes the checkpoint, while `staged` has it open.
    """

    run: Run
    ratio: float
    allocation: AllocationResult = field(init=False)
    rows: dict[str, MatrixResult] = field(default_factory=dict)
    files: dict[str, OutputFile] = field(default_factory=dict)
    staging: Path = field(init=False)
    compression: Compression = field(init=False)
    checks: list[Check] = field(default_factory=list)
    evaluation: EvaluationReport | None = None
    budget: BudgetResult | None = None

    def __post_init__(self) -> None:
        self.given_up = dict(self.run.given_up)
        spec = self.run.spec
        self.identity = self.run.ids.output(
            self.run.config, self.ratio, self.given_up, spec.split, spec.wide
        )

    @property
    def place(self) -> Location:
        """Where the checkpoint is published."""
        return self.run.config.output_folder(self.ratio)

    @property
    def prefix(self) -> str:
        """The common prefix of its weight files' keys."""
        return f"outputs/{self.identity}"

    @property
    def weights(self) -> dict[str, str]:
        """The key of every weight file's item, by the file's name."""
        return {name: f"{self.prefix}/{name}" for name in self.files}

    @property
    def matrices(self) -> dict[str, MatrixResult]:
        """The row of every matrix, in the order of the model."""
        return {matrix.name: self.rows[matrix.name] for matrix in self.run.spec.matrices}

    def discard(self) -> None:
        """Forget its weight files. Raises OwnershipError if the run has another owner by now."""
        self.run.discard(self.prefix)

    def start_over(self) -> None:
        """Forget its weight files and what they scored. Raises as `discard` does."""
        self.discard()
        scores = self.run.store.root / "evaluations"
        for name in files_below(scores):
            if name.startswith(f"{self.identity}-"):
                remove(scores / name)

    def result(self) -> OutputResult:
        return OutputResult(
            ratio=self.ratio,
            path=self.place,
            compression=self.compression,
            checks=tuple(self.checks),
            evaluation=self.evaluation,
        )


OutputStage = Callable[[Output], None]
"""A stage of an output: it takes one that earlier stages have filled."""
