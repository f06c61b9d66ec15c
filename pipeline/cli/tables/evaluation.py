"""An evaluation on a terminal."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report.generation import figures
from pipeline.report.wording import count
from schemas.printable import escaped, printable
from schemas.result.evaluation import EvaluationReport, ModelEvaluation


def evaluation_table(report: EvaluationReport) -> RenderableType:
    """One column per model, the changes against the first one, and the samples underneath."""
    first = report.models[0]
    dtype = "each as stored" if report.dtype == "auto" else f"in {report.dtype}"
    title = (
        f"{printable(Path(report.text).name)}: {count(first.windows, 'window')} of "
        f"{report.sequence_length} tokens, {dtype}"
    )
    table = Table(title=Text(title))  # Text: a name is not markup
    table.add_column()
    for model in report.models:
        table.add_column(Text(printable(Path(model.name).name)), justify="right", overflow="fold")
    for row in zip(*(_column(model, report) for model in report.models), strict=True):
        if any(value for _, value in row):
            table.add_row(row[0][0], *(value for _, value in row))
    samples = [_sample(model, model.sample) for model in report.models if model.sample is not None]
    return Group(table, *samples)


def _column(model: ModelEvaluation, report: EvaluationReport) -> list[tuple[str, str]]:
    first = report.models[0]
    change, removed, faster = "", "", ""
    if model is not first:
        change = f" ({model.perplexity / first.perplexity - 1:+.1%})"
        removed = f" ({model.parameters / first.parameters - 1:+.1%})"
        faster = f" ({model.tokens_per_second / first.tokens_per_second - 1:+.1%})"
    divergence = "" if model.kl is None else f"{model.kl:.4f} nats"
    return [
        ("perplexity", f"{model.perplexity:.2f}{change}"),
        ("KL from the base", divergence),
        *figures(model.generation, len(report.prompts)).items(),
        ("parameters", f"{model.parameters:,}{removed}"),
        ("weights on disk", f"{model.bytes_on_disk / 1e6:,.1f} MB, {model.stored_dtype}"),
        ("tokens a second", f"{model.tokens_per_second:,.0f}{faster}"),
        ("seconds", f"{model.seconds:.1f}"),
    ]


def _sample(model: ModelEvaluation, sample: str) -> Text:
    name = Text(f"\n{printable(Path(model.name).name)}: ", style="bold")
    lines = "\n".join(map(escaped, sample.split("\n")))
    return name.append(lines, style="not bold")  # Text: a name or a prompt is not markup
