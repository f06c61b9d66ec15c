"""Perplexity and KL of models too large to load, streamed through layer shards of all at once."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.cluster.actors import agree, chains, start_workers
from pipeline.cluster.calls import Actor, stop, wait_for
from pipeline.cluster.capacity import find_cluster
from pipeline.cluster.object_store import stream_bytes
from pipeline.cluster.session import ray_session
from pipeline.plan.evaluation import EvaluationPlan, boundary_bytes, plan_evaluation
from pipeline.progress import Progress
from pipeline.stream.boundaries import Boundary
from pipeline.stream.schedule import Batch, as_it_is, drive, micro_batches, stream_forward
from schemas.errors import CompressorError, ConfigError
from schemas.location import Location
from schemas.model.dtypes import ITEM_BYTES
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import ClusterConfig, NumericsConfig
from schemas.result.evaluation import ModelEvaluation
from workers.checkpoint.own_code import may_run_code
from workers.checkpoint.source import Source
from workers.evaluation.perplexity import TokenLoss, require_finite, require_vocabulary
from workers.evaluation.scoring import Rows, Score, total
from workers.model.inspection import inspect_decoder
from workers.process.memory import free_bytes
from workers.storage.places import size_of, url_of
from workers.storage.store import Store
from workers.storage.tensorfile import NAMES

_NUMERICS = NumericsConfig()  # workers have as many threads as in a compression


class Model(NamedTuple):
    """A checkpoint: the name shown to users, its local folder, and its tensors."""

    name: str
    folder: Path
    source: Source


class Crew(NamedTuple):
    """Workers that already run, and the store for their rows between waves.

    `identity` sets those rows apart from other rows in the store.
    """

    workers: list[Actor]
    store: Store
    identity: str


def evaluate_streamed(
    names: Sequence[str], folders: Sequence[Path], windows: Tensor, config: EvaluationConfig
) -> tuple[ModelEvaluation, ...]:
    """Score one model, or a baseline and a checkpoint, on windows (w, length) of tokens.

    Raises as `evaluate` does.
    """
    if config.work_dir is not None and not config.work_dir.is_dir():
        raise ConfigError(f"work_dir {config.work_dir}: no such folder; create it or name another")
    models = [
        Model(name, folder, _source(name, folder, config))
        for name, folder in zip(names, folders, strict=True)
    ]
    return score_models(models, windows, config, config.cluster, Progress())


def score_models(
    models: Sequence[Model],
    windows: Tensor,
    config: EvaluationConfig,
    where: ClusterConfig,
    progress: Progress,
    crew: Crew | None = None,
) -> tuple[ModelEvaluation, ...]:
    """Score models whose tensors are known, on the cluster that `where` describes.

    Every worker holds the same part of all models, so the last has both distributions of each
    token. More shards than workers run in waves. Without a `crew`, workers are started, and the
    rows between waves go to a temporary folder.
    """
    start = time.perf_counter()
    sources = [model.source for model in models]
    for model in models:
        require_vocabulary(model.folder, windows, model.source.spec.vocab_size)
    width = sum(source.spec.hidden_size * ITEM_BYTES[source.dtype] for source in sources)
    with ray_session(where, _NUMERICS.threads, stream_bytes(where, windows.shape[1] * width)):
        cluster = find_cluster(where, _NUMERICS, sources[-1].dtype)
        plan = plan_evaluation(sources, cluster, where.shard_layers)
        names = [model.name for model in models]
        evaluation = _Evaluation(names, sources, config, where, plan, progress)
        score = total(evaluation.by(crew, windows) if crew else evaluation.run(windows))
    seconds = time.perf_counter() - start
    return tuple(
        _summary(model, score, number, windows, evaluation.seconds[number], seconds)
        for number, model in enumerate(models)
    )


@dataclass(frozen=True)
class _Evaluation:
    """A planned evaluation on a started Ray; `seconds` counts the time of each model's layers."""

    names: Sequence[str]
    sources: Sequence[Source]
    config: EvaluationConfig
    where: ClusterConfig
    plan: EvaluationPlan
    progress: Progress
    seconds: Counter[int] = field(default_factory=Counter)

    @property
    def timeout(self) -> float:
        return self.where.item_timeout_s

    def run(self, windows: Tensor) -> list[Score]:
        """Return the score of every window, in order; workers are started and ended here."""
        where, plan = self.where, self.plan
        with self.progress.stage("start", 1, "cluster") as stage:
            shards = len(plan.waves[0])
            workers = start_workers(where, _NUMERICS.threads, plan.host_bytes, shards)
            try:
                chain = self._prepare(workers)
            except CompressorError:
                stop(workers)
                raise
            stage.advance()
        try:
            with _temporary(self.config.work_dir) as store:
                return self._waves(Crew(chain, store, "evaluation"), windows)
        finally:
            stop(workers)

    def by(self, crew: Crew, windows: Tensor) -> list[Score]:
        """Do the same with workers that stay; they must have released what they held before."""
        chain = self._prepare(crew.workers[: len(self.plan.waves[0])])
        scores = self._waves(crew._replace(workers=chain), windows)
        wait_for({worker.release.remote(): "release" for worker in chain}, self.timeout)
        return scores

    def _waves(self, crew: Crew, windows: Tensor) -> list[Score]:
        workers, store = crew.workers, crew.store
        batches, last = micro_batches(windows, size=1, segments=1), len(self.plan.waves) - 1
        if last:
            _require_disk(store.root, boundary_bytes(self.sources, windows.numel()))
            joins = {worker.join.remote(store.root): "work_dir" for worker in workers}
            wait_for(joins, self.timeout)
        for wave in range(last):
            self._wave(wave, crew, batches)
        return self._wave(last, crew, batches)

    def _prepare(self, workers: list[Actor]) -> list[Actor]:
        """Arrange the workers in a chain, and tell each of them the models."""
        plan, where = self.plan, self.where
        calls = [worker.prepare_scoring.remote(self.sources, where.device) for worker in workers]
        facts = agree(where, calls, self.progress)
        [chain] = chains(workers, facts, len(workers))
        waves = f" in {len(plan.waves)} waves" if len(plan.waves) > 1 else ""
        self.progress.note(
            f"plan: {plan.shards} shards of {' and '.join(self.names)}{waves}, each of up to "
            f"{plan.weight_bytes / 1e6:,.1f} MB of weights, on {facts[0].device} "
            f"({facts[0].device_name}) in {self.config.dtype}"
        )
        return chain

    def _wave(self, wave: int, crew: Crew, batches: list[Batch]) -> list[Any]:
        """Run all micro-batches through the shards of a wave; return scores if it is the last."""
        waves = self.plan.waves
        chain = crew.workers[: len(waves[wave])]
        self._load(wave, chain)
        boundaries = [Boundary(crew.store, crew.identity, parts[0][0].start) for parts in waves]
        source = boundaries[wave].source(chain[0]) if wave else _tokens
        sink = boundaries[wave + 1].sink(chain[-1]) if wave + 1 < len(waves) else as_it_is
        found: list[Any] = []
        with self.progress.stage("evaluate", len(batches), "windows") as stage:

            def through(tokens: int, score: Score | None) -> None:
                if score is not None:
                    self._check(score, f"window {len(found)} of {len(batches)}")
                found.append(score)
                stage.advance(1, tokens)

            drive([stream_forward(chain, batches, source, sink)], "evaluate", self.timeout, through)
        for spent in wait_for({w.seconds.remote(): "seconds" for w in chain}, self.timeout):
            self.seconds.update(dict(enumerate(spent)))
        crew.store.discard(boundaries[wave].prefix)
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
        sums = [*zip(self.names, score.nll, strict=True), ("KL", score.kl or 0.0)]
        for what, value in sums:
            require_finite(value / score.tokens, f"{what}, {window}", self.config.dtype)


def _source(name: str, folder: Path, config: EvaluationConfig) -> Source:
    """Describe a checkpoint for every node. Raises CheckpointError if it cannot be used."""
    spec = inspect_decoder(folder)
    may_run_code(folder, trust_remote_code=False)  # the classes of `runtime/` replace its code
    if config.dtype == "auto":
        dtype = next(tensor.dtype for tensor in spec.tensors if tensor.role == "embedding")
    else:
        dtype = NAMES[getattr(torch, config.dtype)]
    if url_of(name) or Path(name).expanduser().is_dir():  # a URL has been copied to `folder`
        return Source(str(folder), None, spec, dtype)
    return Source(name, folder.name, spec, dtype)  # the commit that a hub id stands for now


def _summary(
    model: Model, score: Score, number: int, windows: Tensor, computed: float, seconds: float
) -> ModelEvaluation:
    loss = TokenLoss(score.nll[number], score.tokens)
    size, dtype = _stored(model)
    return ModelEvaluation(
        name=model.name,
        perplexity=loss.perplexity,
        mean_nll=loss.mean,
        windows=len(windows),
        predicted_tokens=loss.tokens,
        parameters=model.source.spec.parameters,
        bytes_on_disk=size,
        stored_dtype=dtype,
        kl=None if not number or score.kl is None else score.kl / score.tokens,
        tokens_per_second=windows.numel() / computed,
        sample=None,
        seconds=seconds,
    )


def _stored(model: Model) -> tuple[int, str]:
    """Like `workers.evaluation.perplexity.stored`, but for weights in any place."""
    spec = model.source.spec
    place = spec.weights or model.folder
    size = sum(size_of(place / file) for file in {tensor.file for tensor in spec.tensors})
    return size, "+".join(
        sorted({t.dtype for t in spec.tensors if t.dtype.startswith(("F", "BF"))})
    )


@contextmanager
def _temporary(work_dir: Path | None) -> Iterator[Store]:
    with tempfile.TemporaryDirectory(
        prefix="svdllm-evaluate-", dir=work_dir, ignore_cleanup_errors=True
    ) as folder:
        yield Store(Path(folder).absolute())


def _require_disk(folder: Location, needed: int) -> None:
    free = free_bytes(folder)
    if free is not None and needed > free:
        raise ConfigError(
            f"{folder}: hidden states take up to {needed:,} bytes between two "
            f"waves, {free:,} are free; free some, name another folder, or fewer windows"
        )


def _tokens(batch: Batch) -> Rows:
    return Rows(batch.tokens, ())
