"""A started run: what every stage is given."""

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

import torch

from pipeline.cluster.actors import agree, chains, start_allocator, start_workers
from pipeline.cluster.calls import Actor, start_timeout, stop, wait_for
from pipeline.cluster.capacity import find_cluster, workers_there
from pipeline.cluster.pool import Pool
from pipeline.cluster.quarantine import Quarantine
from pipeline.plan.neurons import without_wide
from pipeline.plan.planner import make_plan
from pipeline.progress import Progress
from pipeline.request.inputs import Inputs, tokens_sha256
from pipeline.run_directory.earlier import require_same
from pipeline.run_directory.ownership import Ownership
from schemas.errors import CompressorError
from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.request.config import RunConfig
from schemas.run.identity import Ground, Identities, Record, identities
from schemas.run.moments import Tap, taps
from schemas.run.plan import Plan, WorkerFacts
from schemas.run.ranks import require_ranks, with_rank_multiple
from schemas.run.record import RunRecord
from workers.storage.keys import KINDS, RUN_RECORD, STAGING, TRAINING, moment_key
from workers.storage.places import remove_below, write
from workers.storage.store import Store


@dataclass(frozen=True)
class Run:
    """A run on a started Ray; each of its `chains` is a replica, with workers in shard order."""

    config: RunConfig
    inputs: Inputs
    progress: Progress
    ownership: Ownership
    store: Store
    plan: Plan
    facts: WorkerFacts
    ground: Ground
    ids: Identities
    chains: list[list[Actor]]
    pool: Pool
    allocator: Actor

    @property
    def spec(self) -> ModelSpec:
        return self.inputs.spec

    @property
    def workers(self) -> list[Actor]:
        return [worker for chain in self.chains for worker in chain]

    @property
    def timeout(self) -> float:
        return self.config.cluster.item_timeout_s

    @property
    def given_up(self) -> dict[str, str]:
        """The matrices that could not be cut, each with its error: here, or in what is adopted."""
        adopted = None if self.config.calibrates else self.inputs.adopted
        before = {} if adopted is None else adopted.compression.given_up
        return before | self.pool.quarantine.matrices

    @property
    def taps(self) -> list[Tap]:
        """Every moment that this run needs."""
        if not self.config.calibrates:
            return []
        return self._taps_of(self.spec.matrices)

    def moments_of(self, matrix: MatrixSpec) -> set[str]:
        """Return the keys of the moments that a matrix needs."""
        return {moment_key(self.ids, tap) for tap in self._taps_of((matrix,))}

    def _taps_of(self, matrices: tuple[MatrixSpec, ...]) -> list[Tap]:
        asked = self.config
        return taps(matrices, asked.truncation, asked.needs_gradients, asked.lowers_ranks)

    def there(self, *kinds: str) -> dict[str, Record]:
        """Return the committed records of some kinds, such as "moments", of this run, by key."""
        ids = self.ids
        of = {
            "moments": (ids.forward, ids.backward),
            "neurons": (ids.neurons,),
            "factors": (ids.factors, ids.neurons),
        }
        prefixes = [f"{kind}/{i}" for kind in kinds for i in of.get(kind, (ids.bases,)) if i]
        return {record.key: record for at in prefixes for record in self.store.records(at)}

    def discard(self, prefix: str) -> None:
        """Forget the items below a key prefix; only the owner of the run directory may.

        Raises OwnershipError if the run directory has another owner by now.
        """
        self.ownership.require()
        self.store.discard(prefix)

    def home(self, layer: int) -> Actor:
        """Return the worker that holds a layer in its wave. Raises ValueError if none does."""
        for wave in self.plan.waves:
            for worker, shard in zip(self.chains[0], wave, strict=False):
                if layer in shard.range:
                    return worker
        raise ValueError(f"layer {layer} is in no shard of the plan")

    def grow(self) -> None:
        """Invite workers to the pool for as much of the cluster as the pool does not use yet."""
        cluster = self.config.cluster
        idle = self.plan.cluster.workers - self.plan.workers  # the plan has no use for these
        threads = self.config.numerics.threads
        there = workers_there(cluster, threads)
        for _ in range(there - idle - len(self.pool.members)):
            [worker] = start_workers(cluster, threads, self.plan.host_memory, 1)
            ready = worker.enlist.remote(self.config, self.spec, self.ids, self.facts)
            self.pool.invite(worker, ready, start_timeout(cluster))

    def committed(self) -> frozenset[str]:
        """Return the keys of all committed items."""
        return frozenset(record.key for record in self.store.records(""))

    def close(self) -> None:
        """End every actor, busy or not."""
        stop({*self.workers, *self.pool.members, self.allocator})


def start(
    config: RunConfig,
    inputs: Inputs,
    progress: Progress,
    ownership: Ownership,
    quarantine: Quarantine | None = None,
) -> Run:
    """Plan, start the actors, and check that they agree. `quarantine` has what failed before.

    Raises ConfigError if the plan does not fit, or a ratio is too high for the ranks of the device.
    """
    cluster = find_cluster(config.cluster, config.numerics, inputs.spec.dtype)
    spec = without_wide(inputs.spec, cluster) if config.calibrates else inputs.spec
    inputs = inputs._replace(spec=spec)
    config = with_rank_multiple(config, cluster.device)
    require_ranks(config, spec)
    windows = None if inputs.recovery is None else len(inputs.recovery.windows)
    plan = make_plan(_counted(config, inputs), spec, cluster, windows)
    threads = config.numerics.threads
    workers = start_workers(config.cluster, threads, plan.host_memory, plan.workers)
    try:
        calls = [worker.prepare.remote(config, spec) for worker in workers]
        found = agree(config.cluster, calls, progress)
    except CompressorError:
        stop(workers)
        raise
    facts = found[0]
    progress.note(_summary(config, facts, plan))
    ground = _ground(inputs, facts)
    run = Run(
        config=config,
        inputs=inputs,
        progress=progress,
        ownership=ownership,
        store=Store(config.run_folder),
        plan=plan,
        facts=facts,
        ground=ground,
        ids=identities(config, ground),
        chains=chains(workers, found, plan.chain),
        pool=Pool(workers, config.cluster.item_timeout_s, progress.warn, quarantine),
        allocator=start_allocator(config, facts.node),
    )
    run.pool.replace = run.grow
    return run


def announce(run: Run) -> None:
    """Remove what another request has left and this one has no use for, write run.json, and tell
    the workers which items belong to this run.

    Raises ConfigError if the folder holds a run of another identity.
    """
    record = _record(run)
    earlier = require_same(run.store.root, record)
    run.ownership.require()
    if earlier is not None and earlier.ids.taught not in (None, run.ids.taught):
        run.discard(f"boundaries/{earlier.ids.taught}")
    if earlier is not None and earlier.outputs != record.outputs:
        there = {item.key.split("/")[1] for item in run.store.records("outputs")}
        for identity in there - {*record.outputs.values()}:
            run.discard(f"outputs/{identity}")
    if not run.config.trains:
        remove_below(run.store.root / TRAINING)
    for kind in KINDS:
        run.store.sweep(kind)
    remove_below(run.store.root / STAGING)
    write(run.store.root / RUN_RECORD, record.model_dump_json(indent=2).encode())
    calls = {worker.identify.remote(run.ids): "identity of a worker" for worker in run.workers}
    wait_for(calls, run.timeout)


def _counted(config: RunConfig, inputs: Inputs) -> RunConfig:
    """Return the request to be planned: with as many tokens to train on as there are, now that they
    are known, and with norms beside the base's if what is adopted has some.
    """
    if inputs.recovery is None:
        return config
    asked = config.recovery
    tokens = asked.windows_in_all(len(inputs.recovery.windows)) * asked.sequence_length
    recovery = asked.model_copy(update={"tokens": tokens, "norms": inputs.own_norms(config)})
    return config.model_copy(update={"recovery": recovery})


def _ground(inputs: Inputs, facts: WorkerFacts) -> Ground:
    backward, recovery, adopted = inputs.backward, inputs.recovery, inputs.adopted
    return Ground(
        base_files=inputs.base_files,
        forward_tokens=tokens_sha256(inputs.forward),
        backward_tokens=None if backward is None else tokens_sha256(backward),
        recovery_tokens=None if recovery is None else tokens_sha256(torch.cat(recovery)),
        training_dtype=facts.training_dtype if recovery is not None else None,
        adopted=None if adopted is None else adopted.identity,
        dtype=facts.dtype,
        device=facts.device_name,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _summary(config: RunConfig, facts: WorkerFacts, plan: Plan) -> str:
    ratios = ", ".join(f"{ratio.ratio:g}" for ratio in plan.ratios)
    asked = config.budget.option or f"ratio {ratios}"
    time = f"; about {plan.seconds:,.0f} s, most of it {plan.bottleneck}" if plan.seconds else ""
    rest = f"; assumed: {'; '.join(plan.assumed)}" if plan.assumed else ""
    return (
        f"plan: {shape(plan)} on {facts.device} ({facts.device_name}) in "
        f"{facts.dtype}; {plan.targeted_parameters:,} of {plan.total_parameters:,} parameters "
        f"targeted, {asked}{time}{rest}"
    )


def shape(plan: Plan) -> str:
    """Describe the layer shards, and waves and replicas if there are several."""
    parts = [f"{len(plan.shards)} layer shards"]
    if len(plan.waves) > 1:
        parts.append(f"{len(plan.waves)} waves of {plan.chain}")
    if plan.replicas > 1:
        parts.append(f"{plan.replicas} replicas of the chain")
    return ", ".join(parts)


def _record(run: Run) -> RunRecord:
    config, spec = run.config, run.spec
    ids = {
        ratio: run.ids.output(config, ratio, split=spec.split, wide=spec.wide)
        for ratio in config.ratio
    }
    outputs = {str(config.output_folder(ratio)): identity for ratio, identity in ids.items()}
    return RunRecord(
        config=config,
        ground=run.ground,
        ids=run.ids,
        plan=run.plan,
        taps=dict(Counter(tap.direction for tap in run.taps)),
        matrices=len(spec.matrices) if config.lowers_ranks else 0,
        mlps=len(spec.neurons),
        outputs=outputs or {str(config.output): ""},  # at a ratio that a budget is to find
        texts=tuple(run.inputs.texts),
    )
