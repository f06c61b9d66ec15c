"""A comparison of methods on a terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables.tasks import difference
from pipeline.report.wording import figure, plain_size
from schemas.printable import printable
from schemas.request.sizes import format_size
from schemas.result.comparison import Compared, ComparisonReport
from schemas.result.evaluation import EvaluationReport

_LARGE = 1e3  # perplexities of which nobody needs two decimals
_NUMBER = 7  # characters that may not be broken
_BESIDE = 2  # texts with perplexity and KL in one line; more have a line for each


def comparison_table(report: ComparisonReport) -> RenderableType:
    """A row for each method at each ratio; perplexity and KL on each text, and speed."""
    model = printable(Path(report.model).name)
    table = Table(title=Text(f"{model}: perplexity, and KL from it in nats a token"))
    table.add_column("method", no_wrap=True)
    for name in ("removed", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    bases = [evaluation.models[0] for evaluation in report.rows[0].evaluations]
    for text, base in zip(report.texts, bases, strict=True):
        dense = f"{printable(Path(text).name)} (dense {base.perplexity:.2f})"
        table.add_column(Text(dense), justify="right", overflow="fold", min_width=_NUMBER)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    before = report.rows[0].ratio
    for row in report.rows:
        if row.ratio != before:
            table.add_section()
            before = row.ratio
        table.add_row(*_fields(row))
    solved = [_tasks(report)] if any(row.tasks for row in report.rows) else []
    seconds = ", ".join(f"{name} {value:,.0f}" for name, value in report.seconds.items())
    return Group(table, *solved, *_within(report), Text(f"seconds: {seconds}"))


def _within(report: ComparisonReport) -> list[Text]:
    """What is best within a size, and what is not there."""
    found = [Text(printable(f"{name}: {why}")) for name, why in report.beyond.items()]
    for row in report.rows:
        if report.size and row.place == report.best:
            perplexity = row.evaluations[0].models[1].perplexity
            said = f"{row.title}, {row.removed:.2%} removed: perplexity {perplexity:.2f}"
            found.append(Text(f"best within {format_size(report.size)}: {said}"))
    return found


def _tasks(report: ComparisonReport) -> Table:
    """A column for the first metric of each task: its value, and how far it is from the base's."""
    table = Table(title=Text("tasks: value, and difference from the base ± 95 %"))
    table.add_column("method")
    table.add_column("removed", justify="right")
    for number, row in enumerate(report.rows):
        firsts = {one.task: one for one in reversed(row.tasks.rows if row.tasks else ())}
        scores = [firsts[task] for task in sorted(firsts)]
        for one in scores if not number else ():
            name = f"{one.task} {one.metric} (dense {one.scores[0].value:.4f})"
            table.add_column(Text(printable(name)), justify="right", overflow="fold")
        values = [f"{one.scores[-1].value:.4f}, {difference(one)}" for one in scores]
        table.add_row(row.title, f"{row.removed:.2%}", *values)
    return table


def _fields(row: Compared) -> list[str]:
    between = ", " if len(row.evaluations) <= _BESIDE else "\n"
    made = row.evaluations[0].models[1]
    return [
        row.title,
        f"{row.removed:.1%}",
        plain_size(row.bytes),
        *(_score(evaluation, between) for evaluation in row.evaluations),
        # What is not streamed computes the head, too.
        "" if made.kl is None else f"{made.tokens_per_second:,.0f}",
    ]


def _score(evaluation: EvaluationReport, between: str) -> str:
    made = evaluation.models[1]
    large = made.perplexity >= _LARGE
    perplexity = figure(made.perplexity) if large else f"{made.perplexity:.2f}"
    return perplexity if made.kl is None else f"{perplexity}{between}{figure(made.kl)}"
