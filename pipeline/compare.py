"""`svdllm compare`: methods at equal parameters on one model, or ranks and bits at one size."""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.cluster.object_store import run_bytes
from pipeline.cluster.session import ray_session
from pipeline.compress import compress
from pipeline.evaluate import evaluate, read_windows, require_no_urls
from pipeline.quantize import is_made_so, quantize, require_quantisable
from pipeline.report.compare import comparison
from pipeline.report.read import read_reported
from pipeline.request.preflight import Checked, look
from pipeline.stream.scorers import Scorers
from pipeline.tasks import evaluate_tasks
from schemas.errors import BudgetError, ConfigError
from schemas.location import full_path
from schemas.request.comparison import ComparisonConfig
from schemas.request.config import RunConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.groups import EvaluationTextConfig
from schemas.request.methods import Method
from schemas.request.quantization import QuantizationConfig, Scheme
from schemas.result.comparison import Compared, ComparisonReport, title
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import OutputResult
from schemas.run.identity import fingerprint
from workers.checkpoint.names import SUCCESS
from workers.checkpoint.published import read_manifest, read_quantization
from workers.evaluation.harness import Harness
from workers.process.devices import compute_dtype, find_device
from workers.quantisation import require_installed
from workers.quantisation.sizes import base_bytes
from workers.storage.files import write_text
from workers.storage.models import read_model
from workers.text.documents import require_readable
from workers.text.sources import checksum_of

TABLE, PAGE = "comparison.json", "comparison.html"
_AS_STORED = "auto"
_WINDOWS = 2  # raised whenever a text is cut into other windows
_LENGTH = "--evaluation-length "


class _Work(NamedTuple):
    """What is to be compared: a job for each title, and why others have none; the `rows` that jobs
    have added. `base` is a run of the base that was looked at.
    """

    base: Checked
    jobs: dict[str, Callable[[], list[Compared]]]
    beyond: dict[str, str]
    rows: list[Compared]

    @property
    def dtype(self) -> str:
        """That of the runs, in which all is scored; before any, what a run would have here."""
        for row in self.rows:
            if row.dtype != _AS_STORED:
                return row.dtype
        config, spec = self.base.config, self.base.spec
        device = find_device(config.cluster.device)
        found = compute_dtype(config.numerics.dtype, spec.dtype, device)
        return str(found).removeprefix("torch.")


def compare(request: ComparisonConfig) -> ComparisonReport:
    """Compress by every method at every ratio, or by one until it has a size; quantise the base,
    and for a size what is cut, in every scheme. Score all of it; finished work is not redone.

    Moments that two runs need are taken once. Writes comparison.json, and a page that compares
    the checkpoints. Raises as `compress` and `evaluate` do; then the same call continues. Raises
    BudgetError if nothing can have the size.
    """
    request = request.model_copy(update={"output": full_path(request.output)})
    harness = _what_comes_last(request)
    work = (_at_ratios if request.target_size is None else _within)(request)
    base, rows, beyond, seconds = work.base, work.rows, work.beyond, dict[str, float]()
    _require_later(request, base.folder)
    store = run_bytes(base.config, base.spec)
    with ray_session(request.cluster, request.numerics.threads, store):
        for name, job in work.jobs.items():
            start = time.perf_counter()
            try:
                rows += job()
            except BudgetError as error:
                beyond[name] = str(error)
            seconds[name] = time.perf_counter() - start
        with closing(Scorers(request.cluster)) as scorers:  # when no run needs what they take
            for number, row in enumerate(rows):
                start = time.perf_counter()
                rows[number] = _on_every_text(request, base, row, scorers)
                seconds[row.title] += time.perf_counter() - start
        if harness is not None:
            for number, row in enumerate(rows):
                solved = evaluate_tasks(request.solved(base.config, row.place, row.dtype), harness)
                rows[number] = row.model_copy(update={"tasks": solved})
    if not rows:
        raise _nothing(beyond)
    best = min(rows, key=lambda row: row.evaluations[0].models[1].perplexity)
    found = ComparisonReport(
        model=request.model,
        texts=request.evaluate,
        rows=tuple(sorted(rows, key=lambda row: row.ratio)),
        seconds=seconds,
        size=request.target_size,
        best=best.place if request.target_size else None,
        beyond=beyond,
    )
    write_text(request.output / TABLE, found.model_dump_json(indent=2) + "\n")
    page = request.output / PAGE
    if cut := [row.place for row in found.rows if row.ratio and not row.scheme]:
        write_text(page, comparison(read_reported(cut), page))
    return found


def _what_comes_last(request: ComparisonConfig) -> Harness | None:
    """Return the tasks, if any are asked for.

    Raises TextError or ConfigError if what no run looks at would end the work after all runs.
    """
    for option, asked in (("--schemes", request.schemes), ("--tasks", request.tasks.names)):
        if asked:
            require_no_urls([request.model], option)
    require_readable(request.evaluate)
    if request.schemes:
        require_installed()
    return Harness(request.tasks) if request.tasks.names else None


def _require_later(request: ComparisonConfig, folder: Path) -> None:
    """Raises TextError or ConfigError if a text is too short for the base in a folder, or if the
    base would not load in a scheme, either of which would end the work after the runs.
    """
    for text in request.evaluate:
        read_windows(request.scored(request.model, text), [folder])
    for scheme in request.schemes:
        require_quantisable(request.quantised(str(folder), scheme, scheme), folder)


def _at_ratios(request: ComparisonConfig) -> _Work:
    """Every method at every ratio, and the base in every scheme."""
    runs = request.runs
    # All of them, before any work.
    checked = {method: look(config, _LENGTH) for method, config in runs.items()}
    work = _Work(next(iter(checked.values())), {}, {}, [])
    for method, config in runs.items():
        scored = checked[method].config.evaluation
        work.jobs[title(method)] = partial(_compressed, method, config, scored)
    for scheme in request.schemes:
        work.jobs[title(scheme)] = partial(_base, request, work, scheme)
    return work


def _within(request: ComparisonConfig) -> _Work:
    """Within a size: the weights as stored, cut; in each scheme the base, cut if it has to be."""
    method, size = next(iter(request.runs)), request.target_size or 0
    base = look(request.uncut(method), _LENGTH)
    work = _Work(base, {}, {}, [])
    for scheme in (None, *request.schemes):
        if scheme and base_bytes(base.spec, scheme) <= size:
            work.jobs[title(scheme)] = partial(_base, request, work, scheme)
            continue
        name, config = title(method, scheme), request.within(method, scheme)
        try:
            scored = look(config, _LENGTH).config.evaluation
        except BudgetError as error:
            work.beyond[name] = str(error)
            continue
        job = partial(_compressed, method, config, scored)
        if scheme:
            job = partial(_both, request, base.folder, method, scheme, config)
        work.jobs[name] = job
    if not work.jobs:
        raise _nothing(work.beyond)
    return work


def _nothing(beyond: dict[str, str]) -> BudgetError:
    return BudgetError("; ".join(f"{name}: {why}" for name, why in beyond.items()))


def _compressed(method: Method, config: RunConfig, scored: EvaluationTextConfig) -> list[Compared]:
    return [_cut(method, output, scored) for output in compress(config).outputs]


def _both(
    request: ComparisonConfig,
    base: Path,
    method: Method,
    scheme: Scheme,
    config: RunConfig,
) -> list[Compared]:
    """Cut the base so far that it has the size in a scheme, then quantise it."""
    [output] = compress(config).outputs
    done = output.compression
    asked = request.quantised(str(output.path), scheme, request.named(method, scheme))
    fields = {
        "method": method,
        "ratio": output.ratio,
        "removed": done.removed,
        "predicted": done.nats,
        "scheme": scheme,
    }
    return [_quantised(request, base, asked, done.dtype).model_copy(update=fields)]


def _base(request: ComparisonConfig, work: _Work, scheme: Scheme) -> list[Compared]:
    base = work.base.folder
    asked = request.quantised(str(base), scheme, scheme)
    return [_quantised(request, base, asked, work.dtype)]


def _cut(method: Method, output: OutputResult, asked: EvaluationTextConfig) -> Compared:
    """Return the row of a run's checkpoint, with its score on the first text if the run has scored
    it as is asked: one that was there already may have been on another text, or on less of it, or
    the text is another one now.
    """
    done, found = output.compression, output.evaluation
    same = found is not None and (
        (found.text, found.text_sha256, found.sequence_length, found.asked)
        == (asked.text, checksum_of(asked.text or ""), asked.sequence_length, asked.windows)
    )
    return Compared(
        method=method,
        ratio=output.ratio,
        removed=done.removed,
        parameters=done.parameters_after,
        bytes=done.bytes_after,
        predicted=done.nats,
        place=str(output.path),
        dtype=done.dtype,
        evaluations=(found,) if found is not None and same else (),
    )


def _on_every_text(
    request: ComparisonConfig, base: Checked, row: Compared, scorers: Scorers
) -> Compared:
    """Score a checkpoint on the texts that its row does not have yet."""
    others = [
        request.streamed(base.config, row.place, text, row.dtype)
        for text in request.evaluate[len(row.evaluations) :]
    ]
    scores = [_score(request, row.method, other, scorers) for other in others]
    return row.model_copy(update={"evaluations": (*row.evaluations, *scores)})


def _quantised(
    request: ComparisonConfig, base: Path, asked: QuantizationConfig, dtype: str
) -> Compared:
    """Quantise a checkpoint, and score it in a dtype; the row is as if it was the base."""
    there = (asked.output / SUCCESS).exists()
    done = read_quantization(asked.output) if there else quantize(asked, request.model)
    if not is_made_so(done, asked):
        raise ConfigError(
            f"{asked.output} was quantised from another model or text; name another --output"
        )
    if asked.scheme.startswith("NVFP4"):  # computes in the type of the checkpoint only
        dtype = _AS_STORED
    place = asked.output
    evaluations = []
    for text in request.evaluate:
        # Nothing is streamed here, so the base is scored alone, once for all schemes.
        dense = _score(request, "base", request.scored(str(base), text, dtype=dtype))
        mine = _score(request, place.name, request.scored(str(place), text, dtype=dtype))
        evaluations.append(mine.model_copy(update={"models": (*dense.models, *mine.models)}))
    return Compared(
        method=asked.scheme,
        ratio=0.0,
        removed=0.0,
        parameters=evaluations[0].models[1].parameters,
        bytes=done.bytes_after,
        predicted=None,
        place=str(place),
        dtype=dtype,
        evaluations=tuple(evaluations),
    )


def _score(
    request: ComparisonConfig, name: str, asked: EvaluationConfig, scorers: Scorers | None = None
) -> EvaluationReport:
    """Score a checkpoint on a text; the report is kept beside the checkpoints."""
    at = Path(asked.checkpoint)
    made = read_manifest(at).output if (at / SUCCESS).exists() else None  # it may be made anew
    read = asked.text and checksum_of(asked.text)
    figures = asked.model_dump(mode="json", exclude={"workers", "shard_layers", "work_dir"})
    scored = fingerprint([_WINDOWS, figures, made, read])
    kept = request.output / "evaluations" / f"{name}-{scored}.json"
    found = read_model(kept, EvaluationReport)
    if found is None:
        found = evaluate(asked, scorers)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, found.model_dump_json(indent=2) + "\n")
    return found
