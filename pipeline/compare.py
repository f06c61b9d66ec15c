"""`svdllm compare`: the methods at equal parameters on one model, by a run for each."""

import time
from pathlib import Path

from pipeline.cluster.object_store import run_bytes
from pipeline.cluster.session import ray_session
from pipeline.compress import compress
from pipeline.evaluate import evaluate
from pipeline.progress import Progress
from pipeline.quantize import quantize
from pipeline.report.compare import comparison
from pipeline.report.read import read_reported
from pipeline.request.preflight import look
from pipeline.stages.evaluate import read_evaluation
from pipeline.tasks import evaluate_tasks
from schemas.errors import ConfigError, RunError
from schemas.request.comparison import ComparisonConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.methods import Method
from schemas.result.comparison import Compared, ComparisonReport
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import OutputResult
from schemas.run.identity import fingerprint
from workers.checkpoint.names import SUCCESS
from workers.checkpoint.published import read_quantization
from workers.storage.files import write_text

TABLE, PAGE = "comparison.json", "comparison.html"
_ASKED = ("checkpoint", "scheme", "calibration", "seed")


def compare(request: ComparisonConfig, progress: Progress | None = None) -> ComparisonReport:
    """Compress by every method at every ratio, quantise the base in every scheme, and score all of
    it; finished work is not redone.

    Moments that two methods need are taken once. Writes comparison.json, and a page that compares
    the checkpoints. Raises as `compress` and `evaluate` do; then the same call continues.
    """
    runs = request.runs
    checked = {method: look(config) for method, config in runs.items()}  # all, before any work
    first = next(iter(checked.values()))
    rows, seconds = list[Compared](), dict[str, float]()
    store = run_bytes(first.config, first.spec)
    with ray_session(request.cluster, request.numerics.threads, store):
        for method, config in runs.items():
            start = time.perf_counter()
            outputs = compress(config, progress).outputs
            rows += [_cut(request, first.folder, method, output) for output in outputs]
            seconds[method] = time.perf_counter() - start
        for scheme in request.schemes:
            start = time.perf_counter()
            rows.append(_quantised(request, first.folder, scheme))
            seconds[rows[-1].method] = time.perf_counter() - start
        if request.tasks.names:
            solved = [evaluate_tasks(request.solved(first.folder, row.place)) for row in rows]
            pairs = zip(rows, solved, strict=True)
            rows = [row.model_copy(update={"tasks": tasks}) for row, tasks in pairs]
    found = ComparisonReport(
        model=request.model,
        texts=request.evaluate,
        rows=tuple(sorted(rows, key=lambda row: row.ratio)),
        seconds=seconds,
    )
    write_text(request.output / TABLE, found.model_dump_json(indent=2) + "\n")
    page = request.output / PAGE
    cut = [row.place for row in found.rows if row.ratio]
    write_text(page, comparison(read_reported(cut), page))
    return found


def _cut(request: ComparisonConfig, base: Path, method: Method, output: OutputResult) -> Compared:
    if output.evaluation is None:
        raise RunError(f"{output.path}: published without an evaluation; name another --output")
    done, place, workers = output.compression, str(output.path), request.cluster.workers
    others = [
        _score(request, method, request.scored(base, place, text, streamed=True, workers=workers))
        for text in request.evaluate[1:]
    ]
    return Compared(
        method=method,
        ratio=output.ratio,
        removed=done.removed,
        parameters=done.parameters_after,
        bytes=done.bytes_after,
        predicted=done.nats,
        place=place,
        evaluations=(output.evaluation, *others),
    )


def _quantised(request: ComparisonConfig, base: Path, scheme: str) -> Compared:
    asked = request.quantised(base, scheme)
    there = (asked.output / SUCCESS).exists()
    done = read_quantization(asked.output) if there else quantize(asked)
    if any(getattr(done, name) != getattr(asked, name) for name in _ASKED):
        raise ConfigError(
            f"{asked.output} was quantised from another model or text; name another --output"
        )
    # NVFP4 computes in the type of the checkpoint only.
    dtype = "auto" if scheme.startswith("NVFP4") else "float32"
    evaluations = [
        _score(request, scheme, request.scored(base, str(asked.output), text, dtype=dtype))
        for text in request.evaluate
    ]
    return Compared(
        method=asked.scheme,
        ratio=0.0,
        removed=0.0,
        parameters=evaluations[0].models[1].parameters,
        bytes=done.bytes_after,
        predicted=None,
        place=str(asked.output),
        evaluations=tuple(evaluations),
    )


def _score(request: ComparisonConfig, name: str, asked: EvaluationConfig) -> EvaluationReport:
    """Score a checkpoint on a text; the report is kept beside the checkpoints."""
    scored = fingerprint(asked.model_dump(mode="json", exclude={"workers"}))
    kept = request.output / "evaluations" / f"{name}-{scored}.json"
    found = read_evaluation(kept)
    if found is None:
        found = evaluate(asked)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, found.model_dump_json(indent=2) + "\n")
    return found
