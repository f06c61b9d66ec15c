"""`svdllm compare`: the methods at equal parameters on one model, by a run for each."""

import time

from pipeline.cluster.object_store import run_bytes
from pipeline.cluster.session import ray_session
from pipeline.compress import compress
from pipeline.evaluate import evaluate
from pipeline.progress import Progress
from pipeline.report.compare import comparison
from pipeline.report.read import read_reported
from pipeline.request.preflight import look
from pipeline.stages.evaluate import read_evaluation
from schemas.errors import RunError
from schemas.request.comparison import ComparisonConfig
from schemas.request.methods import Method
from schemas.result.comparison import Compared, ComparisonReport
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import OutputResult
from schemas.run.identity import fingerprint
from workers.storage.files import write_text

TABLE, PAGE = "comparison.json", "comparison.html"


def compare(request: ComparisonConfig, progress: Progress | None = None) -> ComparisonReport:
    """Compress by every method at every ratio, and score all of it; finished work is not redone.

    Moments that two methods need are taken once. Writes comparison.json, and a page that compares
    the checkpoints. Raises as `compress` and `evaluate` do; then the same call continues.
    """
    runs = request.runs
    checked = {method: look(config) for method, config in runs.items()}  # all, before any work
    first = next(iter(checked.values()))
    rows, seconds = list[Compared](), dict[Method, float]()
    store = run_bytes(first.config, first.spec)
    with ray_session(request.cluster, request.numerics.threads, store):
        for method, config in runs.items():
            start = time.perf_counter()
            outputs = compress(config, progress).outputs
            rows += [_row(request, method, output) for output in outputs]
            seconds[method] = time.perf_counter() - start
    found = ComparisonReport(
        model=request.model,
        texts=request.evaluate,
        rows=tuple(sorted(rows, key=lambda row: row.ratio)),
        seconds=seconds,
    )
    write_text(request.output / TABLE, found.model_dump_json(indent=2) + "\n")
    page = request.output / PAGE
    write_text(page, comparison(read_reported([row.place for row in found.rows]), page))
    return found


def _row(request: ComparisonConfig, method: Method, output: OutputResult) -> Compared:
    if output.evaluation is None:
        raise RunError(f"{output.path}: published without an evaluation; name another --output")
    done, second = output.compression, _second(request, method, str(output.path))
    return Compared(
        method=method,
        ratio=output.ratio,
        removed=done.removed,
        parameters=done.parameters_after,
        bytes=done.bytes_after,
        predicted=done.nats,
        place=str(output.path),
        evaluations=(output.evaluation, *([] if second is None else [second])),
    )


def _second(request: ComparisonConfig, method: Method, place: str) -> EvaluationReport | None:
    """Score a checkpoint on the second text, if there is one; kept beside the checkpoints."""
    asked = request.second(place)
    if asked is None:
        return None
    scored = fingerprint(asked.model_dump(mode="json", exclude={"workers"}))
    kept = request.output / "evaluations" / f"{method}-{scored}.json"
    found = read_evaluation(kept)
    if found is None:
        found = evaluate(asked)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, found.model_dump_json(indent=2) + "\n")
    return found
