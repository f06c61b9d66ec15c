"""What the commands print: one table each."""

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from schemas.manifest import Check, OutputResult, RunResult
from schemas.plan import Plan
from schemas.printable import printable
from schemas.status import Activity, RunStatus

_MARKS = {
    True: Text("ok", "green"),
    False: Text("FAILED", "bold red"),
    None: Text("not judged", "yellow"),
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
        *(Text(printable(str(output.path))) for output in result.outputs),
        Text(f"seconds: {seconds}"),
        *([Text(f"workers busy: {busy}")] if busy else []),
        Text(f"peak memory: driver {_size(result.driver_peak_bytes)}, workers {workers}"),
    )


def plan_table(plan: Plan) -> RenderableType:
    """Parameters before and after, the layer shards, and what they take."""
    return Group(
        _parameters(plan),
        _matrices(plan),
        Text(_layout(plan)),
        _memory(plan),
        _stages(plan),
        Text(_disk(plan)),
        Text(_time(plan)),
        *([Text(f"assumed: {'; '.join(plan.assumed)}")] if plan.assumed else []),
    )


def check_table(checks: Sequence[Check]) -> RenderableType:
    """A row per check."""
    table = Table("check", "", "", title="Verification")
    for check in checks:
        mark = _MARKS[check.passed]
        table.add_row(Text(check.name), mark, Text(printable(check.detail)))
    return table


def status_table(status: RunStatus) -> RenderableType:
    """Items by stage, and which checkpoints are published."""
    table = Table("stage")
    table.add_column("done", justify="right")
    table.add_column("of", justify="right")
    table.add_column("on disk", justify="right")
    for stage in status.stages:
        total = "" if stage.total is None else f"{stage.total:,}"
        table.add_row(stage.name, f"{stage.done:,}", total, _size(stage.bytes))
    lines = [
        f"{folder}: {'published' if done else 'not yet'}" for folder, done in status.outputs.items()
    ]
    if status.activity is not None:
        lines += [status.owner, *_activity(status.activity)]
    return Group(Text(printable(status.model)), table, *(Text(printable(line)) for line in lines))


def _activity(now: Activity) -> list[str]:
    rate = f", {now.tokens_per_second:,.0f} tokens/s" if now.tokens_per_second else ""
    left = f"; about {_duration(now.left)} left" if now.left and not now.error else ""
    spent = _duration(sum(now.spent.values()))
    lines = [f"{now.stage}: {now.done:,} of {now.total:,} {now.unit}{rate}{left}"]
    lines.append(f"after {spent} of work, at {now.written}")
    lines += [f"warning: {warning}" for warning in now.warnings]
    return lines + ([f"failed: {now.error}"] if now.error else [])


def _parameters(plan: Plan) -> Table:
    table = Table("", title="Plan")
    table.add_column("parameters", justify="right")
    table.add_column("of targeted matrices", justify="right")
    table.add_row("before", f"{plan.total_parameters:,}", f"{plan.targeted_parameters:,}")
    for ratio in plan.ratios:
        parameters = f"{ratio.total_parameters:,}", f"{ratio.targeted_parameters:,}"
        table.add_row(f"ratio {ratio.ratio:g}", *parameters)
    return table


def _matrices(plan: Plan) -> Table:
    table = Table("matrix", title="Matrices")
    for heading in ("out", "in", "count", "parameters"):
        table.add_column(heading, justify="right")
    for kind in plan.kinds:
        parameters = kind.count * kind.out_features * kind.in_features
        counts = (kind.out_features, kind.in_features, kind.count, parameters)
        table.add_row(kind.path, *(f"{count:,}" for count in counts))
    return table


def _layout(plan: Plan) -> str:
    sizes = sorted({len(shard.range) for shard in plan.shards})
    return (
        f"{_count(plan.workers, 'worker')} of {plan.cluster.workers}, {plan.cluster.device_name}, "
        f"{plan.cluster.dtype}: {_count(len(plan.shards), 'layer shard')} of "
        f"{' or '.join(map(str, sizes))} layer{'' if sizes == [1] else 's'}, "
        f"{_count(len(plan.waves), 'wave')} of a chain of {plan.chain}, "
        f"{_count(plan.replicas, 'replica')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _memory(plan: Plan) -> Table:
    """On the CPU its device is the host too."""
    memory, cluster = plan.memory, plan.cluster
    table = Table("memory of the largest worker", title="Memory")
    for heading in ("device", "host"):
        table.add_column(heading, justify="right")
    for name, size in (
        (f"weights, {cluster.dtype}", memory.weights),
        ("forward moments, float32", memory.forward_moments),
        ("or backward moments, float32", memory.backward_moments),
        ("activations", memory.activations),
        ("or, later, a factorisation, float64", memory.factorise),
    ):
        table.add_row(name, _size(size), "")
    for name, size in (
        ("sums of moments, float64 and float32", memory.sums),
        (f"read or committed (a basis: {_size(memory.bases)})", memory.transit),
        ("the process", memory.process),
    ):
        table.add_row(name, "", _size(size))
    table.add_row("peak", _size(memory.device), _size(memory.host))
    if cluster.on_gpu:
        has = (cluster.device_memory, cluster.host_memory)
    else:
        has = (cluster.host_memory - memory.host, cluster.host_memory - memory.device)
    table.add_row("there is", *(_size(size) for size in has))
    return table


def _stages(plan: Plan) -> Table:
    table = Table(title="Stages, all workers together", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding = (0, 1, 0, 0)  # it fits 80 columns
    table.add_column("stage", no_wrap=True)
    for heading in ("flops", "read", "written", "network", "time"):
        table.add_column(heading, justify="right")
    table.add_column("limit")
    for stage in plan.stages:
        sizes = (stage.read_bytes, stage.written_bytes, stage.network_bytes)
        flops = f"{stage.flops:.1e}" if stage.flops else ""
        row = (flops, *(_size(size) if size else "" for size in sizes))
        table.add_row(stage.name, *row, _duration(stage.total), stage.limit or "")
    return table


def _disk(plan: Plan) -> str:
    disk = plan.disk
    parts = {
        "moments": disk.moments,
        "bases": disk.bases,
        "boundaries of waves": disk.boundaries,
        "sums of replicas": disk.partial_sums,
        "factors and files not yet published": 2 * disk.outputs,
    }
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    return (
        f"disk: run directory {_size(disk.run_directory)} ({listed}); "
        f"checkpoints {_size(disk.outputs)}"
    )


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        return f"time: not known, for want of the throughput of {plan.cluster.device_name!r}"
    spent: dict[str, float] = {}
    for stage in plan.stages:
        for resource, seconds in (stage.seconds or {}).items():
            spent[resource] = spent.get(resource, 0.0) + seconds
    order = sorted(spent, key=spent.__getitem__, reverse=True)
    listed = ", ".join(f"{name} {_duration(spent[name])}" for name in order)
    return (
        f"time: about {_duration(plan.seconds)} ({listed}); "
        f"the longest stage and what limits it: {plan.bottleneck}"
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"
    return f"{seconds / 3600:.1f} h"


def _output_column(output: OutputResult) -> list[tuple[str, str]]:
    done = output.compression
    encodings = Counter(matrix.encoding for matrix in done.matrices)
    fallbacks = len(done.fallbacks) + sum(len(matrix.fallbacks) for matrix in done.matrices)
    base, result = output.evaluation.models if output.evaluation else (None, None)
    return [
        ("removed of targeted", f"{done.removed:.2%}"),
        ("targeted before", f"{done.targeted_before:,}"),
        ("targeted after", f"{done.targeted_after:,}"),
        ("parameters before", f"{done.parameters_before:,}"),
        ("parameters after", f"{done.parameters_after:,}"),
        ("weights before", _size(done.bytes_before)),
        ("weights after", _size(done.bytes_after)),
        ("matrices", ", ".join(f"{count} {kind}" for kind, count in sorted(encodings.items()))),
        ("predicted loss", _nats(done.nats)),
        ("measured loss", _nats(output.evaluation.nats if output.evaluation else None)),
        ("perplexity before", f"{base.perplexity:.2f}" if base else "-"),
        ("perplexity after", f"{result.perplexity:.2f}" if result else "-"),
        ("fallbacks", str(fallbacks)),
        ("could not be cut", str(len(done.given_up)) if done.given_up else "-"),
    ]


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f} nats"


def _size(value: int) -> str:
    amount, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
