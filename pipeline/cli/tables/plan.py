"""A plan on a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report.wording import count, plain_duration, plain_size
from schemas.run.plan import Plan


def plan_table(plan: Plan) -> RenderableType:
    """Show parameters before and after, the layer shards, and what they take."""
    return Group(
        _parameters(plan),
        _matrices(plan),
        Text(_layout(plan)),
        _memory(plan),
        _stages(plan),
        Text(_disk(plan)),
        Text(_time(plan)),
        *([Text(_rounds(plan))] if plan.rounds else []),
        *([Text(f"assumed: {'; '.join(plan.assumed)}")] if plan.assumed else []),
    )


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
        f"{count(plan.workers, 'worker')} of {plan.cluster.workers}, {plan.cluster.device_name}, "
        f"{plan.cluster.dtype}: {count(len(plan.shards), 'layer shard')} of "
        f"{' or '.join(map(str, sizes))} layer{'' if sizes == [1] else 's'}, "
        f"{count(len(plan.waves), 'wave')} of a chain of {plan.chain}, "
        f"{count(plan.replicas, 'replica')}"
        f"{'' if plan.rank_multiple == 1 else f'; ranks are multiples of {plan.rank_multiple}'}"
    )


def _memory(plan: Plan) -> Table:
    """On the CPU, device and host share one memory."""
    memory, cluster = plan.memory, plan.cluster
    basis = f" (a basis: {plain_size(memory.bases)})" if memory.bases else ""
    table = Table("memory of the largest worker", title="Memory")
    for heading in ("device", "host"):
        table.add_column(heading, justify="right")
    for name, size in (
        (f"weights, {cluster.dtype}", memory.weights),
        ("forward moments, float32", memory.forward_moments),
        ("or backward moments, float32", memory.backward_moments),
        ("activations", memory.activations),
        ("or, then, a factorisation, float64", memory.factorise),
    ):
        table.add_row(name, plain_size(size), "")
    for name, size in (
        ("sums of moments, float64 and float32", memory.sums),
        (f"read or committed{basis}", memory.transit),
        ("the process", memory.process),
    ):
        table.add_row(name, "", plain_size(size))
    table.add_row("peak", plain_size(memory.device), plain_size(memory.host))
    if training := plan.recovery:
        where = ", parameters on the host" if training.offload else ""
        table.add_row(f"recovery{where}", plain_size(training.device), plain_size(training.host))
    if cluster.on_gpu:
        has = (cluster.device_memory, cluster.host_memory)
    else:
        has = (cluster.host_memory - memory.host, cluster.host_memory - memory.device)
    table.add_row("there is", *(plain_size(size) for size in has))
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
        row = (flops, *(plain_size(size) if size else "" for size in sizes))
        table.add_row(stage.name, *row, plain_duration(stage.total), stage.limit or "")
    return table


def _disk(plan: Plan) -> str:
    disk = plan.disk
    parts = {
        "moments": disk.moments,
        "bases": disk.bases,
        "hidden states": disk.boundaries,
        "sums of replicas": disk.partial_sums,
        "states of training": disk.training,
        "trained factors": disk.recovered,
        "factors and files not yet published": disk.factors + disk.outputs,
    }
    listed = ", ".join(f"{name} {plain_size(size)}" for name, size in parts.items() if size)
    return (
        f"disk: run directory {plain_size(disk.run_directory)} ({listed}); "
        f"checkpoints {plain_size(disk.outputs)}"
    )


def _rounds(plan: Plan) -> str:
    rounds = plan.rounds
    each = ", then ".join(
        f"{one.ratio:.2%} removed in {plain_duration(one.seconds)}" for one in rounds
    )
    known = [one.seconds for one in rounds if one.seconds is not None]
    total = sum(known) if len(known) == len(rounds) else None
    return (
        f"rounds: {each}; together {plain_duration(total)}, and at most "
        f"{plain_size(sum(one.disk_bytes for one in rounds))} of disk, for what a round has made "
        "stays; the figures above are those of the last one"
    )


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        return f"time: not known, for want of the throughput of {plan.cluster.device_name!r}"
    spent: dict[str, float] = {}
    for stage in plan.stages:
        for resource, seconds in (stage.seconds or {}).items():
            spent[resource] = spent.get(resource, 0.0) + seconds
    order = sorted(spent, key=spent.__getitem__, reverse=True)
    listed = ", ".join(f"{name} {plain_duration(spent[name])}" for name in order)
    return (
        f"time: about {plain_duration(plan.seconds)} ({listed}); "
        f"the longest stage and what limits it: {plan.bottleneck}"
    )
