"""Perplexity and KL of models that fit nowhere, streamed through layer shards of all at once."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.boundaries import Boundary
from pipeline.cluster import Actor, agree, find_cluster, ray_session, with_resources
from pipeline.evaluation_plan import EvaluationPlan, boundary_bytes, plan_evaluation
from pipeline.progress import Progress
from pipeline.stream import Batch, as_it_is, drive, micro_batches, stream_forward
from pipeline.waiting import wait_for
from schemas.config import NumericsConfig
from schemas.errors import ConfigError
from schemas.evaluation import EvaluateConfig, ModelEvaluation
from workers.actors_evaluation import EvaluationShard, Source
from workers.checkpoint import inspect_decoder
from workers.objects import url_of
from workers.own_code import may_run_code
from workers.perplexity import TokenLoss, require_finite, require_vocabulary, stored
from workers.scoring import Rows, Score, total
from workers.store import Store
from workers.tensorfile import NAMES

_NUMERICS = NumericsConfig()  # a worker has as many threads as one of a compression


def evaluate_streamed(
    names: Sequence[str], folders: Sequence[Path], windows: Tensor, config: EvaluateConfig
) -> tuple[ModelEvaluation, ...]:
    """Score one model, or a baseline and a checkpoint, on windows (w, length) of tokens.

    Every worker holds the same part of all models, so the last has both distributions of each
    token. More shards than workers run in waves. Raises what `evaluate` does.
    """
    start = time.perf_counter()
    if config.work_dir is not None and not config.work_dir.is_dir():
        raise ConfigError(f"work_dir {config.work_dir}: no such folder; create it or name another")
    sources = [_source(*model, config) for model in zip(names, folders, strict=True)]
    for folder, source in zip(folders, sources, strict=True):
        require_vocabulary(folder, windows, source.spec.vocab_size)
    with ray_session(config.cluster, _NUMERICS.threads):
        cluster = find_cluster(config.cluster, _NUMERICS, sources[-1].dtype)
        plan = plan_evaluation(sources, cluster, config.shard_layers)
        score = total(_Evaluation(names, sources, config, plan, Progress()).run(windows))
    seconds = time.perf_counter() - start
    return tuple(
        _summary(name, folder, source, score, model, len(windows), seconds)
        for model, (name, folder, source) in enumerate(zip(names, folders, sources, strict=True))
    )


@dataclass(frozen=True)
class _Evaluation:
    """A planned evaluation on a started Ray."""

    names: Sequence[str]
    sources: Sequence[Source]
    config: EvaluateConfig
    plan: EvaluationPlan
    progress: Progress

    @property
    def timeout(self) -> float:
        return self.config.cluster.item_timeout_s

    def run(self, windows: Tensor) -> list[Score]:
        """The score of every window, in order."""
        workers = self._start()
        batches, last = micro_batches(windows, size=1, segments=1), len(self.plan.waves) - 1
        with tempfile.TemporaryDirectory(
            prefix="svdllm-evaluate-", dir=self.config.work_dir, ignore_cleanup_errors=True
        ) as folder:
            root = Path(folder).absolute()
            store = Store(root)
            if last:
                _require_disk(root, boundary_bytes(self.sources, windows.numel()))
                joins = {worker.join.remote(store.root): "work_dir" for worker in workers}
                wait_for(joins, self.timeout)
            for wave in range(last):
                self._wave(wave, workers, batches, store)
            return self._wave(last, workers, batches, store)

    def _start(self) -> list[Actor]:
        config, plan, threads = self.config, self.plan, _NUMERICS.threads
        with self.progress.stage("start", 1, "cluster") as stage:
            actor = with_resources(EvaluationShard, config.cluster, threads, plan.host_bytes)
            workers = [actor.remote(self.sources, config.device, threads) for _ in plan.waves[0]]
            facts = agree(config.cluster, workers, self.progress)
            stage.advance()
        waves = f" in {len(plan.waves)} waves" if len(plan.waves) > 1 else ""
        self.progress.note(
            f"plan: {plan.shards} shards of {' and '.join(self.names)}{waves}, each of up to "
            f"{plan.weight_bytes / 1e6:,.1f} MB of weights, on {facts.device} "
            f"({facts.device_name}) in {config.dtype}"
        )
        return workers

    def _wave(
        self, wave: int, workers: list[Actor], batches: list[Batch], store: Store
    ) -> list[Any]:
        """All micro-batches through the shards of one wave: their scores, where it is the last."""
        waves = self.plan.waves
        chain = workers[: len(waves[wave])]
        self._load(wave, chain)
        boundaries = [Boundary(store, "evaluation", parts[0][0].start) for parts in waves]
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
        store.discard(boundaries[wave].prefix)
        return found

    def _load(self, wave: int, chain: list[Actor]) -> None:
        parts = self.plan.waves[wave]
        loads = {
            worker.load.remote(part): "load" for worker, part in zip(chain, parts, strict=True)
        }
        with self.progress.stage("load", len(loads), "shards") as stage:
            wait_for(loads, self.timeout, lambda _: stage.advance())

    def _check(self, score: Score, window: str) -> None:
        sums = [*zip(self.names, score.nll, strict=True), ("KL", score.kl or 0.0)]
        for what, value in sums:
            require_finite(value / score.tokens, f"{what}, {window}", self.config.dtype)


def _source(name: str, folder: Path, config: EvaluateConfig) -> Source:
    """One checkpoint, in words for every node. Raises CheckpointError where it cannot be used."""
    spec = inspect_decoder(folder)
    may_run_code(folder, trust_remote_code=False)  # the classes of `runtime/` stand for its code
    if config.dtype == "auto":
        [dtype] = [
            t.dtype for t in spec.tensors if t.name == f"{spec.architecture.embedding}weight"
        ]
    else:
        dtype = NAMES[getattr(torch, config.dtype)]
    if url_of(name) or Path(name).expanduser().is_dir():  # a URL has been copied to `folder`
        return Source(str(folder), None, spec, dtype)
    return Source(name, folder.name, spec, dtype)  # the commit that a hub id stands for now


def _summary(
    name: str,
    folder: Path,
    source: Source,
    score: Score,
    model: int,
    windows: int,
    seconds: float,
) -> ModelEvaluation:
    loss = TokenLoss(score.nll[model], score.tokens)
    size, dtype = stored(folder)
    return ModelEvaluation(
        name=name,
        perplexity=loss.perplexity,
        mean_nll=loss.mean,
        windows=windows,
        predicted_tokens=loss.tokens,
        parameters=source.spec.parameters,
        bytes_on_disk=size,
        stored_dtype=dtype,
        kl=None if not model or score.kl is None else score.kl / score.tokens,
        sample=None,
        seconds=seconds,
    )


def _require_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"work_dir {folder.parent}: hidden states take up to {needed:,} bytes between two "
            f"waves, {free:,} are free; free some, name another --work-dir, or fewer windows"
        )


def _tokens(batch: Batch) -> Rows:
    return Rows(batch.tokens, ())
