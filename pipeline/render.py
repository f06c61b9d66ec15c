"""What the commands print: one table each."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas.manifest import Check, OutputResult, RunResult
from schemas.plan import Plan
from schemas.status import RunStatus

_MARKS = {
    True: Text("ok", "green"),
    False: Text("FAILED", "bold red"),
    None: Text("not done", "yellow"),
}


def run_table(result: RunResult) -> RenderableType:
    """A column per ratio, then where the checkpoints are, seconds by stage and memory."""
    table = Table("", title="Compressed")
    for output in result.outputs:
        table.add_column(f"ratio {output.ratio:g}", justify="right")
    for row in zip(*(_output_column(output) for output in result.outputs), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in result.seconds.items())
    busy = "; ".join(
        f"{stage} {', '.join(f'{share:.0%}' for share in shares)}"
        for stage, shares in result.busy.items()
    )
    workers = ", ".join(_size(peak) for peak in result.worker_peak_bytes)
    return Group(
        table,
        *(Text(str(output.path)) for output in result.outputs),
        Text(f"seconds: {seconds}"),
        *([Text(f"workers busy: {busy}")] if busy else []),
        Text(f"peak memory: driver {_size(result.driver_peak_bytes)}, workers {workers}"),
    )


def plan_table(plan: Plan) -> RenderableType:
    """Parameters before and after, the layer shards, and what they take."""
    table = Table("", title="Plan")
    table.add_column("parameters", justify="right")
    table.add_column("of targeted matrices", justify="right")
    table.add_row("before", f"{plan.total_parameters:,}", f"{plan.targeted_parameters:,}")
    for ratio in plan.ratios:
        table.add_row(
            f"ratio {ratio.ratio:g}",
            f"{ratio.total_parameters:,}",
            f"{ratio.targeted_parameters:,}",
        )
    matrices = Table("matrix", title="Matrices")
    for heading in ("out", "in", "count", "parameters"):
        matrices.add_column(heading, justify="right")
    for kind in plan.kinds:
        matrices.add_row(
            kind.path,
            f"{kind.out_features:,}",
            f"{kind.in_features:,}",
            f"{kind.count:,}",
            f"{kind.count * kind.out_features * kind.in_features:,}",
        )
    shards = ", ".join(f"{shard.start}-{shard.stop - 1}" for shard in plan.shards)
    cost = [
        f"{len(plan.shards)} layer shards, layers {shards}",
        f"worker: weights {_size(plan.weight_bytes)}, moments {_size(plan.moment_bytes)} "
        f"(and {_size(plan.moment_sum_bytes)} on the host), "
        f"largest factorisation {_size(plan.factorise_bytes)}",
        f"disk: run directory {_size(plan.run_disk_bytes)}, "
        f"checkpoints {_size(plan.output_disk_bytes)}",
    ]
    return Group(table, matrices, *(Text(line) for line in cost))


def check_table(checks: Sequence[Check]) -> RenderableType:
    """A row per check."""
    table = Table("check", "", "", title="Verification")
    for check in checks:
        mark = _MARKS[check.passed]
        table.add_row(Text(check.name), mark, Text(check.detail))
    return table


def status_table(status: RunStatus) -> RenderableType:
    """Items by stage, and which checkpoints are published."""
    table = Table("stage", title=Text(status.model))
    table.add_column("done", justify="right")
    table.add_column("of", justify="right")
    table.add_column("on disk", justify="right")
    for stage in status.stages:
        total = "" if stage.total is None else f"{stage.total:,}"
        table.add_row(stage.name, f"{stage.done:,}", total, _size(stage.bytes))
    lines = [
        Text(f"{folder}: {'published' if done else 'not yet'}")
        for folder, done in status.outputs.items()
    ]
    return Group(table, *lines)


def _output_column(output: OutputResult) -> list[tuple[str, str]]:
    done = output.compression
    encodings = Counter(matrix.encoding for matrix in done.matrices)
    fallbacks = len(done.fallbacks) + sum(len(matrix.fallbacks) for matrix in done.matrices)
    return [
        ("removed of targeted", f"{done.removed:.2%}"),
        ("targeted before", f"{done.targeted_before:,}"),
        ("targeted after", f"{done.targeted_after:,}"),
        ("parameters before", f"{done.parameters_before:,}"),
        ("parameters after", f"{done.parameters_after:,}"),
        ("weights before", _size(done.bytes_before)),
        ("weights after", _size(done.bytes_after)),
        ("matrices", ", ".join(f"{count} {kind}" for kind, count in sorted(encodings.items()))),
        ("predicted loss", "-" if done.nats is None else f"+{done.nats:.3f} nats"),
        ("fallbacks", str(fallbacks)),
    ]


def _size(value: int) -> str:
    amount, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
