"""A started run: what every stage is given."""

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

from pipeline.cluster import (
    Actor,
    start_allocator,
    start_timeout,
    start_workers,
    wait_for,
    worker_count,
)
from pipeline.inputs import Inputs, tokens_sha256
from pipeline.plan import device_memory, make_plan
from pipeline.progress import Progress
from schemas.config import RunConfig
from schemas.errors import ConfigError, WorkerError
from schemas.identity import Ground, Identities, identities
from schemas.model import MatrixSpec, ModelSpec
from schemas.moments import Tap, taps
from schemas.plan import Plan, WorkerFacts
from schemas.run import RunRecord
from workers.store import Store, write_text


@dataclass(frozen=True)
class Run:
    """One run on a started Ray. Workers are in the order of the plan's shards."""

    config: RunConfig
    inputs: Inputs
    progress: Progress
    store: Store
    plan: Plan
    facts: WorkerFacts
    ids: Identities
    workers: list[Actor]
    allocator: Actor

    @property
    def spec(self) -> ModelSpec:
        return self.inputs.spec

    @property
    def timeout(self) -> float:
        return self.config.cluster.item_timeout_s

    @property
    def taps(self) -> list[Tap]:
        """Every moment that this run needs."""
        return taps(self.spec.matrices, self.config.truncation, self.config.needs_gradients)

    def committed_bytes(self) -> int:
        """Bytes of the items of this run that are there already."""
        streams = [self.ids.forward, self.ids.backward]
        kept = [f"moments/{identity}" for identity in streams if identity]
        kept += [f"bases/{self.ids.bases}", f"factors/{self.ids.factors}"]
        return sum(record.bytes for prefix in kept for record in self.store.records(prefix))

    def owner(self, matrix: MatrixSpec) -> Actor:
        """The worker whose shard holds the weights of `matrix`."""
        for worker, shard in zip(self.workers, self.plan.shards, strict=True):
            if matrix.layer in shard.range:
                return worker
        raise ValueError(f"{matrix.name} is in no shard of the plan")


def start(config: RunConfig, inputs: Inputs, progress: Progress) -> Run:
    """Plan, start the actors, agree on what is computed, and write run.json."""
    spec = inputs.spec
    count = worker_count(config, spec.layers)
    plan = make_plan(config, spec, count)
    workers = start_workers(config, spec, count, plan)
    facts = _agree(config, workers, progress)
    plan = make_plan(config, spec, count, facts.dtype)
    _require_device_memory(facts, plan)
    progress.note(_summary(facts, plan))
    ids = identities(config, _ground(inputs, facts))
    run = Run(
        config=config,
        inputs=inputs,
        progress=progress,
        store=Store(config.run_folder),
        plan=plan,
        facts=facts,
        ids=ids,
        workers=workers,
        allocator=start_allocator(config),
    )
    run.store.clear_temporaries()
    write_text(run.store.root / "run.json", _record(run).model_dump_json(indent=2))
    calls = {worker.identify.remote(ids): "identity of a worker" for worker in workers}
    wait_for(calls, run.timeout)
    return run


def _ground(inputs: Inputs, facts: WorkerFacts) -> Ground:
    backward = inputs.backward
    return Ground(
        base_files=inputs.base_files,
        forward_tokens=tokens_sha256(inputs.forward),
        backward_tokens=None if backward is None else tokens_sha256(backward),
        dtype=facts.dtype,
        device=facts.device_name,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _agree(config: RunConfig, workers: list[Actor], progress: Progress) -> WorkerFacts:
    calls = {worker.prepare.remote(): "start of a worker" for worker in workers}
    facts: list[WorkerFacts] = wait_for(calls, start_timeout(config))
    kinds = {(fact.device, fact.device_name, fact.dtype) for fact in facts}
    if len(kinds) > 1:
        raise WorkerError(
            f"the workers differ in device or dtype ({sorted(kinds)}), so their numbers would; "
            "use nodes of one kind, or --device cpu"
        )
    if facts[0].gpu_reserved and facts[0].device == "cpu":
        progress.warn("Ray gave each worker a GPU, but torch sees none there: computing on the CPU")
    return facts[0]


def _require_device_memory(facts: WorkerFacts, plan: Plan) -> None:
    needed = device_memory(plan)
    if facts.device == "cuda" and needed > facts.device_memory:
        raise ConfigError(
            f"a layer shard takes about {needed:,} bytes of GPU memory, a {facts.device_name} has "
            f"{facts.device_memory:,}; use more GPUs, or a narrower --dtype"
        )


def _summary(facts: WorkerFacts, plan: Plan) -> str:
    ratios = ", ".join(f"{ratio.ratio:g}" for ratio in plan.ratios)
    return (
        f"plan: {len(plan.shards)} layer shards on {facts.device} ({facts.device_name}) in "
        f"{facts.dtype}; {plan.targeted_parameters:,} of {plan.total_parameters:,} parameters "
        f"targeted, ratio {ratios}"
    )


def _record(run: Run) -> RunRecord:
    return RunRecord(
        config=run.config,
        ids=run.ids,
        plan=run.plan,
        taps=dict(Counter(tap.direction for tap in run.taps)),
        matrices=len(run.spec.matrices),
        outputs={
            str(run.config.output_folder(ratio)): run.ids.output(run.config, ratio)
            for ratio in run.config.ratio
        },
    )
