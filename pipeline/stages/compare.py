"""Base and result on the same text, layer shard by layer shard, before a result is published."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from pipeline.cluster.capacity import workers_there
from pipeline.cluster.pool import Task
from pipeline.request.inputs import tokens_sha256
from pipeline.run import Run
from pipeline.stream.evaluation import Model, score_models
from schemas.location import Location
from schemas.result.evaluation import EvaluateConfig, EvaluationReport, ModelEvaluation
from schemas.run.identity import fingerprint
from workers.actors.evaluation_shard import Source
from workers.checkpoint.contents import inspect_decoder
from workers.storage.keys import STAGING
from workers.storage.places import read_bytes, remove_below, upload, write

NAME = "evaluation.json"
_STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # safetensors' names


def compare(
    run: Run,
    identity: str,
    folder: Path,
    weights: Mapping[str, str],
    place: Location,
    samples: tuple[str | None, str | None],
) -> EvaluationReport | None:
    """Perplexity of the base and of the checkpoint in `folder`, which is to be at `place`, and the
    KL between them; None where the run has no text for it. `samples` are what both wrote.

    It is kept in the run directory. Where it is not there yet, the workers of the pool make room
    for those of the evaluation.
    """
    text = run.inputs.evaluation
    if text is None:
        return None
    asked = run.config.evaluation.model_copy(update={"text": text.name})
    asked_for = fingerprint([asked.model_dump(), tokens_sha256(text.windows)])
    kept = run.store.root / f"evaluations/{identity}-{asked_for}.json"
    if found := _read(kept):
        return found
    config = EvaluateConfig(
        checkpoint=str(place),
        baseline=run.config.model,
        text=text.name,
        sequence_length=asked.sequence_length,
        max_windows=asked.windows,
        dtype=run.facts.dtype,
        device=run.config.cluster.device,
        streamed=True,
    )
    there = workers_there(run.config.cluster, run.config.numerics.threads)  # some may be lost
    where = run.config.cluster.model_copy(update={"workers": there})
    run.discard(f"boundaries/{identity}")
    with _result(run, folder, weights) as source:
        run.pool.dismiss()
        models = [Model(run.config.model, run.inputs.folder, _base(run))]
        models.append(Model(str(place), folder, source))
        progress, store = run.progress, run.store
        scores = score_models(models, text.windows, config, where, progress, store, identity)
    scores = tuple(
        score.model_copy(update={"sample": sample})
        for score, sample in zip(scores, samples, strict=True)
    )
    report = EvaluationReport(
        text=text.name, sequence_length=asked.sequence_length, dtype=config.dtype, models=scores
    )
    write(kept, report.model_dump_json(indent=2).encode())
    run.progress.note(f"{place}: {_summary(*scores)}")
    return report


def published(place: Location) -> EvaluationReport | None:
    """The evaluation of a published checkpoint, if there was one."""
    return _read(place / NAME)


def _read(place: Location) -> EvaluationReport | None:
    try:
        return EvaluationReport.model_validate_json(read_bytes(place))
    except (FileNotFoundError, ValidationError):
        return None


def _summary(base: ModelEvaluation, result: ModelEvaluation) -> str:
    divergence = "" if result.kl is None else f", KL {result.kl:.4f} nats a token"
    return (
        f"perplexity {base.perplexity:.2f} -> {result.perplexity:.2f} "
        f"({result.perplexity / base.perplexity - 1:+.1%}){divergence}"
    )


def _base(run: Run) -> Source:
    config, dtype = run.config, _STORED[run.facts.dtype]
    return Source(config.model, config.revision, run.spec, dtype, config.fetched)


@contextmanager
def _result(run: Run, folder: Path, weights: Mapping[str, str]) -> Iterator[Source]:
    """The checkpoint in `folder` as every node reads it: of a run directory in an object store by
    way of a copy there.
    """
    root, dtype = run.store.root, _STORED[run.facts.dtype]
    if isinstance(root, Path):
        yield Source(str(folder), None, inspect_decoder(folder), dtype)
        return
    prefix = root / STAGING / uuid.uuid4().hex[:12]
    try:
        for path in folder.iterdir():
            upload(path, prefix / path.name)
        run.pool.run(
            Task(f"stage {name}", "upload", (key, prefix / name), lambda _: None)
            for name, key in weights.items()
        )
        run.pool.quarantine.require()
        spec = inspect_decoder(folder, prefix)
        yield Source(str(prefix), None, spec, dtype, run.config.fetched)
    finally:
        remove_below(prefix)
