"""A bench on a terminal."""

import statistics
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report.wording import count, plain_size
from schemas.printable import printable
from schemas.result.bench import BenchedModel, BenchReport, Served, over


def bench_table(report: BenchReport) -> RenderableType:
    """One column per model, with each figure over that of the first one; a block per workload."""
    first = report.models[0]
    table = Table(title=report.setting)
    table.add_column()
    for model in report.models:
        name = Text(printable(Path(model.name).name))  # Text: a name is not markup
        table.add_column(name, justify="right", overflow="fold")
    for row in zip(*(_sizes(model, first) for model in report.models), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    for served in zip(*(model.served for model in report.models), strict=True):
        table.add_section()
        table.add_row(served[0].workload.words)
        for row in zip(*(_speeds(one, served[0]) for one in served), strict=True):
            table.add_row(row[0][0], *(value for _, value in row))
    rounds = count(len(first.served[0].rounds), "round")
    alone = "" if report.in_turn else " Each model was alone on a worker of the cluster."
    return Group(table, Text(f"Speeds are medians of {rounds} (least to most).{alone}"))


def _sizes(model: BenchedModel, first: BenchedModel) -> list[tuple[str, str]]:
    rows: list[tuple[str, str, float | None, float | None]] = [
        ("parameters", f"{model.parameters:,}", model.parameters, first.parameters),
        (
            "weights on disk",
            f"{plain_size(model.bytes_on_disk)}, {model.stored_dtype}",
            model.bytes_on_disk,
            first.bytes_on_disk,
        ),
        ("load, seconds", f"{model.load_s:.1f}", model.load_s, first.load_s),
        ("peak memory", plain_size(model.peak_bytes or 0), model.peak_bytes, first.peak_bytes),
    ]
    return [
        (label, f"{text}{_ratio(mine / other, model is first)}" if mine and other else "")
        for label, text, mine, other in rows
    ]


def _speeds(served: Served, first: Served) -> list[tuple[str, str]]:
    rows = [
        ("first token, seconds", served.first_token_s, first.first_token_s, ".3f"),
        ("prompt tokens a second", served.prefill, first.prefill, ",.0f"),
        ("new tokens a second", served.decode, first.decode, ",.1f"),
    ]
    return [
        (
            f"  {label}",
            f"{statistics.median(mine):{form}} ({min(mine):{form}} to {max(mine):{form}})"
            f"{_ratio(over(mine, other), served is first)}",
        )
        for label, mine, other, form in rows
    ]


def _ratio(value: float, itself: bool) -> str:
    return "" if itself else f", x {value:.2f}"
