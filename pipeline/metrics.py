"""What a driver reports of its runs through Ray's metrics."""

import contextlib
import time
from collections.abc import Iterator

from pipeline.progress import Progress, Stage
from schemas.metrics import Metric, Outcome
from schemas.result.evaluation import EvaluationReport
from workers.actors.metrics import count, keep, show


@contextlib.contextmanager
def measured(progress: Progress) -> Iterator[None]:
    """Count what the stages of a run do and show the current one, while the context is open."""
    meter = _Meter(progress)
    progress.watchers.append(meter.note)
    end = keep(meter.show)
    try:
        yield
    finally:
        end()
        progress.watchers.remove(meter.note)


def show_perplexity(report: EvaluationReport, ratio: float) -> None:
    """Show the perplexity of a base, and of the model compressed at a ratio."""
    for name, model in zip(("base", "compressed"), report.models, strict=True):
        show(Metric.PERPLEXITY, model.perplexity, model=name, ratio=f"{ratio:g}")


def count_nightly(outcome: Outcome) -> None:
    """Count the outcome of one checkpoint of a nightly job, and show when one was published."""
    count(Metric.NIGHTLY_CHECKPOINTS, outcome=outcome)
    if outcome == "succeeded":
        show(Metric.NIGHTLY_SUCCESS, time.time())


class _Meter:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: Stage | None = None
        self._counted: dict[Metric, int] = {}

    def note(self, stage: Stage) -> None:
        """Count what a stage has done since it was last seen."""
        if stage is not self._stage:
            self._stage, self._counted = stage, {}
            self.show()
        now = {
            Metric.STAGE_ITEMS: stage.done,
            Metric.TOKENS: stage.tokens,
            Metric.MATRICES: stage.matrices,
            Metric.LAYERS: stage.layers,
        }
        for metric, total in now.items():
            count(metric, total - self._counted.get(metric, 0), stage=stage.name)
        self._counted = now

    def show(self) -> None:
        """Show which stage is under way, and its progress."""
        if stage := self._progress.current:
            done = stage.done / stage.total if stage.total else 1.0
            show(Metric.STAGE_PROGRESS, done, stage=stage.name)
