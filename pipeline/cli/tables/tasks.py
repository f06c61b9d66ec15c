"""What models got on tasks, on a terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables.evaluation import evaluation_table
from schemas.printable import printable
from schemas.result.tasks import Row, Score, TaskReport

_NORMAL = 1.96  # standard errors on both sides of a value hold 95 %


def tasks_table(report: TaskReport) -> RenderableType:
    """One row per metric of a task, one column per model, and the paired difference."""
    title = f"tasks of lm-eval {report.lm_eval}, in {report.dtype}; ± is 95 %"
    table = Table(title=Text(title))
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("documents", justify="right")
    for model in report.models:
        table.add_column(Text(printable(Path(model).name)), justify="right", overflow="fold")
    if len(report.models) > 1:
        table.add_column("difference", justify="right")
    for number, row in enumerate(report.rows):
        again = number and report.rows[number - 1].task == row.task
        shown = (
            ["", _metric(row), ""] if again else [_task(row), _metric(row), f"{row.documents:,}"]
        )
        change = [] if row.difference is None else [difference(row)]
        table.add_row(*map(Text, [*shown, *map(_score, row.scores), *change]))
    parts: list[RenderableType] = [] if report.text is None else [evaluation_table(report.text)]
    return Group(table, *parts)


def difference(row: Row) -> str:
    """Return how far the last model is from the first, with the interval that holds 95 %."""
    return "" if row.difference is None else _score(row.difference, sign="+")


def _task(row: Row) -> str:
    shots = f", {row.fewshot} examples" if row.fewshot else ""
    return printable(f"{row.task}{shots}")


def _metric(row: Row) -> str:
    better = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
    chosen = "" if row.filter == "none" else f", {row.filter}"
    return printable(f"{row.metric}{chosen}{better}")


def _score(score: Score, sign: str = "") -> str:
    interval = "" if score.stderr is None else f" ± {_NORMAL * score.stderr:.4f}"
    return f"{score.value:{sign}.4f}{interval}"
