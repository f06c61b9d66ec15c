"""The status of a run on a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.cli.printing import whole
from pipeline.report.wording import plain_duration, plain_size
from schemas.run.record import Activity, RunStatus


def status_table(status: RunStatus) -> RenderableType:
    """Show items by stage, and which checkpoints are published."""
    table = Table("stage")
    table.add_column("done", justify="right")
    table.add_column("of", justify="right")
    table.add_column("on disk", justify="right")
    for stage in status.stages:
        total = "" if stage.total is None else f"{stage.total:,}"
        table.add_row(stage.name, f"{stage.done:,}", total, plain_size(stage.bytes))
    lines = [
        f"{folder}: {'published' if done else 'not yet'}" for folder, done in status.outputs.items()
    ]
    lines += [
        status.owner,
        *(_activity(status.activity) if status.activity else ["no stage has begun"]),
    ]
    return Group(whole(status.model), table, *map(whole, lines))


def _activity(now: Activity) -> list[str]:
    rate = f", {now.tokens_per_second:,.0f} tokens/s" if now.tokens_per_second else ""
    left = f"; about {plain_duration(now.left)} left" if now.left and not now.error else ""
    spent = plain_duration(sum(now.spent.values()))
    lines = [f"{now.stage}: {now.done:,} of {now.total:,} {now.unit}{rate}{left}"]
    lines.append(f"after {spent} of work, at {now.written}")
    lines += [f"warning: {warning}" for warning in now.warnings]
    return lines + ([f"failed: {now.error}"] if now.error else [])
