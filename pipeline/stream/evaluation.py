"""Perplexity and KL of models too large to load, streamed through layer shards of all at once."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.cluster.actors import agree, chains
from pipeline.cluster.calls import Actor, wait_for
from pipeline.cluster.object_store import stream_bytes
from pipeline.cluster.session import ray_session
from pipeline.plan.evaluation import EvaluationPlan, boundary_bytes, plan_evaluation
from pipeline.progress import Progress
from pipeline.stream.boundaries import Boundary
from pipeline.stream.models import Model, model_of
from pipeline.stream.schedule import Batch, as_it_is, drive, micro_batches, stream_forward
from pipeline.stream.scorers import NUMERICS, Scorers
from schemas.errors import ConfigError, DiskError
from schemas.location import Location
from schemas.model.dtypes import FORMATS, ITEM_BYTES
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import ClusterConfig
from schemas.result.evaluation import ModelEvaluation, Speed
from schemas.run.plan import ClusterSpec
from schemas.run.stages import StageName
from workers.checkpoint.source import Source
from workers.evaluation.perplexity import TokenLoss, require_finite, require_vocabulary
from workers.evaluation.scoring import Rows, Score, total
from workers.model.shard import Purpose
from workers.process.memory import free_bytes
from workers.storage.store import Store


class Crew(NamedTuple):
    """Workers that already run, and the store for their rows between waves.

    `identity` sets those rows apart from other rows in the store, `discard` removes what is below a
    key prefix there.
    """

    workers: list[Actor]
    store: Store
    identity: str
    discard: Callable[[str], None]


def evaluate_streamed(
    names: Sequence[str],
    folders: Sequence[Path],
    windows: Tensor,
    config: EvaluationConfig,
    scorers: Scorers | None,
) -> tuple[ModelEvaluation, ...]:
    """Score one model, or a baseline and a checkpoint, on windows (w, length) of tokens.

    Workers are started unless some are given, and the rows between waves go to a temporary folder.
    Raises as `evaluate` does.
    """
    start, work_dir, where = time.perf_counter(), config.work_dir, config.cluster
    if work_dir is not None and not work_dir.is_dir():
        raise ConfigError(f"work_dir {work_dir}: no such folder; create it or name another")
    models = [model_of(name, folder, config) for name, folder in zip(names, folders, strict=True)]
    width = sum(m.source.spec.hidden_size * ITEM_BYTES[m.source.dtype] for m in models)
    store = stream_bytes(where, windows.shape[1] * width)
    with (
        ray_session(where, NUMERICS.threads, store),
        nullcontext(scorers) if scorers else closing(Scorers(where)) as hired,
    ):
        cluster = hired.cluster(models[-1].source.dtype)
        evaluation = Evaluation(models, windows, where, cluster, Progress())
        score = total(evaluation.run(work_dir, hired))
    return tuple(
        evaluation.of(number, score, evaluation.speed(number, start))
        for number in range(len(models))
    )


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on the workers of a cluster, on a started Ray.

    Every worker holds the same part of all models, so the last has both distributions of each
    token. More shards than workers run in waves. `below` has the last hidden states of the first
    model, whose layers then do not run. `above` gets those of the only model, which is not scored;
    windows that are there do not run again. `seconds` counts the time of each model's layers,
    `tokens` those that went through them.
    """

    models: Sequence[Model]
    windows: Tensor
    where: ClusterConfig
    cluster: ClusterSpec
    progress: Progress
    below: Boundary | None = None
    above: Boundary | None = None
    stage: StageName = "evaluate"
    seconds: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for model in self.models:
            require_vocabulary(model.folder, self.windows, model.source.spec.vocab_size)

    @cached_property
    def plan(self) -> EvaluationPlan:
        ran = 0 if self.below is None else 1
        return plan_evaluation(self.sources, self.cluster, self.where.shard_layers, ran)

    @property
    def timeout(self) -> float:
        return self.where.item_timeout_s

    @property
    def sources(self) -> list[Source]:
        return [model.source for model in self.models]

    @property
    def dtype(self) -> str:
        return FORMATS[self.sources[-1].dtype].torch

    def run(self, work_dir: Path | None, scorers: Scorers) -> list[Score]:
        """Return the score of every window, in order."""
        with self.progress.stage("start", 1, "cluster") as stage:
            workers = scorers.hire(len(self.plan.waves[0]), self.plan.host_bytes)
            chain = self._prepare(workers)
            stage.advance()
        with tempfile.TemporaryDirectory(
            prefix="svdllm-evaluate-", dir=work_dir, ignore_cleanup_errors=True
        ) as folder:
            store = Store(Path(folder).absolute())
            return self._through(Crew(chain, store, "evaluation", store.discard))

    def by(self, crew: Crew) -> list[Score]:
        """Do the same with workers of a run; they must have released what they held before."""
        chain = self._prepare(crew.workers[: len(self.plan.waves[0])])
        return self._through(crew._replace(workers=chain))

    def _through(self, crew: Crew) -> list[Score]:
        scores = self._waves(crew)
        calls = {worker.release.remote(): "release" for worker in crew.workers}
        wait_for(calls, self.timeout)
        return scores

    def speed(self, number: int, start: float) -> Speed:
        """Return what was measured of a model since `start`."""
        return Speed(
            tokens_per_second=self.tokens[number] / self.seconds[number],
            seconds=time.perf_counter() - start,
        )

    def of(self, number: int, score: Score, speed: Speed) -> ModelEvaluation:
        model, loss = self.models[number], TokenLoss(score.nll[number], score.tokens)
        size, dtype = model.stored()
        return ModelEvaluation(
            name=model.name,
            perplexity=loss.perplexity,
            mean_nll=loss.mean,
            windows=len(self.windows),
            predicted_tokens=loss.tokens,
            parameters=model.source.spec.parameters,
            bytes_on_disk=size,
            stored_dtype=dtype,
            kl=None if not number or score.kl is None else score.kl / score.tokens,
            tokens_per_second=speed.tokens_per_second,
            sample=None,
            seconds=speed.seconds,
        )

    def _waves(self, crew: Crew) -> list[Score]:
        workers, store = crew.workers, crew.store
        batches, waves = window_batches(self.windows), len(self.plan.waves)
        if above := self.above:
            batches = above.missing(batches)
        count = sum(batch.tokens.numel() for batch in batches)
        self.tokens.update(dict.fromkeys(range(len(self.models)), count))
        if waves > 1:
            _require_disk(store.root, boundary_bytes(self.sources, self.windows.numel()))
            joins = {worker.join.remote(store.root): "work_dir" for worker in workers}
            wait_for(joins, self.timeout)
        return [self._wave(wave, crew, batches) for wave in range(waves)][-1]

    def _prepare(self, workers: list[Actor]) -> list[Actor]:
        """Arrange the workers in a chain, and tell each of them the models."""
        plan, where = self.plan, self.where
        calls = [worker.prepare_scoring.remote(self.sources, where.device) for worker in workers]
        facts = agree(where, calls, self.progress)
        [chain] = chains(workers, facts, len(workers))
        names = " and ".join(model.name for model in self.models)
        waves = f" in {len(plan.waves)} waves" if len(plan.waves) > 1 else ""
        self.progress.note(
            f"plan: {sum(map(len, plan.waves))} shards of {names}{waves}, each of up to "
            f"{plan.weight_bytes / 1e6:,.1f} MB of weights, on {facts[0].device} "
            f"({facts[0].device_name}) in {self.dtype}"
        )
        return chain

    def _wave(self, wave: int, crew: Crew, batches: list[Batch]) -> list[Any]:
        """Run all micro-batches through the shards of a wave; return scores if it is the last."""
        waves = self.plan.waves
        chain = crew.workers[: len(waves[wave])]
        self._load(wave, chain)
        starts = [parts[0][-1].start for parts in waves[1:]]
        between = [Boundary(crew.store, crew.identity, start) for start in starts]
        below, above = [self.below, *between][wave], [*between, self.above][wave]
        source = below.source(chain[0]) if below else lambda batch: Rows(batch.tokens, ())
        sink = above.sink(chain[-1]) if above else as_it_is
        purpose: Purpose = "output" if above else "score"
        found: list[Any] = []
        with self.progress.stage(self.stage, len(batches), "windows") as stage:

            def through(tokens: int, score: Score | None) -> None:
                if score is not None:
                    self._check(score, f"window {len(found)} of {len(batches)}")
                found.append(score)
                stage.advance(1, tokens)

            stream = stream_forward(chain, batches, source, sink, purpose)
            drive([stream], self.stage, self.timeout, through)
        for spent in wait_for({w.seconds.remote(): "seconds" for w in chain}, self.timeout):
            self.seconds.update(dict(enumerate(spent)))
        if below and below is not self.below:
            crew.discard(below.prefix)
        return found

    def _load(self, wave: int, chain: list[Actor]) -> None:
        parts = self.plan.waves[wave]
        loads = {
            worker.load_models.remote(part): "load"
            for worker, part in zip(chain, parts, strict=True)
        }
        with self.progress.stage("load", len(loads), "shards") as stage:
            wait_for(loads, self.timeout, lambda _: stage.advance())

    def _check(self, score: Score, window: str) -> None:
        names = [model.name for model in self.models]
        for what, value in [*zip(names, score.nll, strict=True), ("KL", score.kl or 0.0)]:
            require_finite(value / score.tokens, f"{what}, {window}", self.dtype)


def window_batches(windows: Tensor) -> list[Batch]:
    """Return windows one by one, as they are scored."""
    return micro_batches(windows, size=1, segments=1)


def _require_disk(folder: Location, needed: int) -> None:
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise DiskError(
            f"{folder}: hidden states take up to {needed:,} bytes between two "
            f"waves, {free:,} are free; free some, name another folder, or fewer windows"
        )
