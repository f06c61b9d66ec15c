"""From shapes alone: the layer shards, waves and replicas of a run on given machines."""

from collections import Counter
from pathlib import Path

from pipeline.plan.budget import SUPPOSED, supposed
from pipeline.plan.devices import DEFAULT, Rates, assumptions, rates
from pipeline.plan.footprint import Costs
from pipeline.plan.layouts import layouts
from pipeline.plan.machines import Machines, find
from pipeline.plan.neurons import without_wide
from pipeline.plan.recovery import recovery, recovery_memory
from pipeline.plan.refusal import refusal
from pipeline.plan.work import evaluation, stages
from pipeline.report.wording import count
from schemas.errors import DiskError
from schemas.model.spec import ModelSpec
from schemas.request.config import ROUNDS, RunConfig
from schemas.run.context import within_context
from schemas.run.plan import ClusterSpec, DiskUse, Layout, MatrixKind, Plan, RatioPlan, RoundPlan
from schemas.run.ranks import require_ranks, with_rank_multiple
from schemas.run.targets import select
from workers.model.inspection import read_spec
from workers.process.memory import free_bytes
from workers.storage.places import files_below

_FEW = 0.05  # of the parameters of layers


def plan_checkpoint(config: RunConfig, machines: Machines) -> Plan:
    """Plan a run from config.json alone, before anything is started; of several rounds, the last,
    with what each takes. Raises ConfigError if one does not fit.
    """
    spec = select(config, read_spec(config.model, config.revision, config.dequantize))
    cluster = find(config, spec, machines)
    spec = without_wide(spec, cluster)
    config = with_rank_multiple(within_context(config, spec), cluster.device)
    require_ranks(config, spec)
    plans = [make_plan(one, spec, cluster) for one in config.in_rounds()]
    if len(plans) == 1:
        return plans[0]
    rounds = tuple(
        RoundPlan(
            ratio=plan.ratios[0].ratio,
            seconds=plan.seconds,
            disk_bytes=plan.disk.run_directory
            + plan.disk.outputs
            - (plan.disk.training if plan is not plans[-1] else 0),
        )
        for plan in plans
    )
    return plans[-1].model_copy(update={"rounds": rounds})


def make_plan(
    config: RunConfig, spec: ModelSpec, cluster: ClusterSpec, windows: int | None = None
) -> Plan:
    """Return the fastest plan that fits; at a tie, the one with fewer replicas, then fewer waves.

    A chain has as few waves as fit its memory. If the device's throughput is unknown, return the
    plan that would be fastest on a known device, with seconds None. Raises ConfigError if nothing
    fits, saying what would.
    """
    costs = Costs(supposed(config, spec), spec, cluster.dtype, windows)
    speed = rates(cluster, config)
    usual = speed or rates(cluster.model_copy(update={"device_name": DEFAULT}), config)

    def preference(layout: Layout) -> tuple[float, int, int]:
        seconds = sum(stage.total or 0.0 for stage in stages(costs, layout, usual))
        return seconds, layout.replicas, len(layout.waves)

    best = min(layouts(costs, cluster), key=preference, default=None)
    if best is None:
        raise refusal(config, spec, cluster)
    return _describe(costs, cluster, best, speed)


def require_disk(disk: DiskUse, config: RunConfig, published: int = 0) -> None:
    """Raises DiskError if run directory and checkpoints do not fit on their disks.

    Factors are kept beside the checkpoints they go into; what the run has written counts, and so do
    the bytes of the checkpoints that it has `published`, whose files were in the run directory.
    """
    outputs = disk.outputs - published
    run_directory = disk.run_directory - published - _written(config)
    needs = {config.run_folder: run_directory, config.output: outputs}
    for folder, size in needs.items():
        free = free_bytes(folder)
        if free is not None and size > free:
            raise DiskError(
                f"{folder}: the run needs about {size:,} bytes there, {free:,} are free; "
                f"free {size - free:,}, or name another --run-dir or --output"
                f"{_without_bases(disk, size - free) if folder == config.run_folder else ''}"
            )


def _written(config: RunConfig) -> int:
    """Bytes in a run directory on a disk, but for earlier rounds and a base that was fetched."""
    if not isinstance(config.run_folder, Path):
        return 0  # an object store has no end
    others, found = (f"{ROUNDS}/", f"{config.fetched.name}/"), files_below(config.run_folder)
    return sum(size for name, size in found.items() if not name.startswith(others))


def _without_bases(disk: DiskUse, lacking: int) -> str:
    """Suggest not keeping the bases, if that saves enough."""
    if disk.bases < lacking:
        return ""
    return f", or --set cluster.keep_bases=false ({disk.bases:,} bytes less, and slower)"


def _describe(costs: Costs, cluster: ClusterSpec, layout: Layout, speed: Rates | None) -> Plan:
    spec, budget, wide = costs.spec, costs.config.budget, len(costs.spec.wide)
    trials = count(budget.trials, "trial")
    held = recovery_memory(costs, cluster) if costs.config.trains else None
    table = (
        *stages(costs, layout, speed),
        *recovery(costs, cluster, speed, held),
        *evaluation(costs, cluster, speed),
    )
    slowest = max(table, key=lambda stage: stage.total or 0.0)
    return Plan(
        **dict(layout),
        cluster=cluster,
        total_parameters=costs.spec.parameters,
        targeted_parameters=spec.targeted,
        kinds=_kinds(spec),
        ratios=tuple(_ratio_plan(costs, ratio) for ratio in dict.fromkeys(costs.config.ratio)),
        cuts=len(costs.config.ratio),
        rank_multiple=costs.config.allocation.multiple,
        recovery=held,
        disk=costs.disk(layout.waves, layout.replicas),
        stages=table,
        seconds=None if slowest.total is None else sum(stage.total or 0.0 for stage in table),
        bottleneck=None if slowest.limit is None else f"{slowest.name}: {slowest.limit}",
        assumed=(
            *cluster.assumed,
            *([f"no room to order the neurons of {count(wide, 'MLP')}: they stay"] if wide else []),
            *([f"{trials} at ratio {SUPPOSED:g}"] if budget.measured else []),
            *_not_counted(costs),
            *(() if slowest.total is None else assumptions(costs.config)),
        ),
    )


def _not_counted(costs: Costs) -> list[str]:
    """Say how much of the layers the operations leave out, if it is more than norms and routers."""
    reached = sum(layer.reached for layer in costs.layers)
    share = 1 - reached / sum(layer.parameters for layer in costs.layers)
    said = f"no operations of what is not targeted, {share:.0%} of the layers' parameters"
    return [said] if share > _FEW else []


def _kinds(spec: ModelSpec) -> tuple[MatrixKind, ...]:
    counts = Counter((m.path, m.out_features, m.in_features) for m in spec.matrices)
    return tuple(
        MatrixKind(path=path, out_features=rows, in_features=columns, count=count)
        for (path, rows, columns), count in counts.items()
    )


def _ratio_plan(costs: Costs, ratio: float) -> RatioPlan:
    stays = costs.stays(ratio)
    total = costs.spec.parameters - costs.spec.targeted + stays
    return RatioPlan(ratio=ratio, targeted_parameters=stays, total_parameters=total)
