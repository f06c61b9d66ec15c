"""`svdllm evaluate --tasks`: a checkpoint and its base on tasks of lm-eval."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from pipeline.evaluate import evaluate_in, local_folder, read_windows, require_no_urls
from pipeline.request.places import require_writable
from schemas.request.evaluation import EvaluationConfig
from schemas.result.tasks import TaskReport, TaskResult
from schemas.run.identity import fingerprint
from workers.checkpoint.source import on_every_node
from workers.evaluation.harness import Harness, Job, run_job
from workers.evaluation.task_results import rows
from workers.process.devices import find_device
from workers.process.logs import log
from workers.storage.files import write_text
from workers.storage.models import read_model
from workers.text.documents import require_readable

_RESULTS = Path("svdllm-tasks")  # the folder of what is found, if none is named


class Pair(NamedTuple):
    """A model, a task, and the file of what that model gets on that task."""

    model: int
    task: str
    file: Path


def evaluate_tasks(config: EvaluationConfig, harness: Harness | None = None) -> TaskReport:
    """Run the baseline, if there is one, and the checkpoint on every task that is asked for.

    A `harness` of these tasks may be there from another checkpoint. What is found in
    `tasks.results` is not run again; what is finished is kept there at once. Raises as `evaluate`
    does; also ConfigError if lm-eval is not installed or refuses a task, or if that folder cannot
    be written to, and TextError if the documents of a task cannot be had.
    """
    start = perf_counter()
    names = [name for name, _ in config.models]
    config = _everywhere(config, names)
    if config.scores_text:
        require_readable([config.text])
    harness = harness or Harness(config.tasks)
    with contextlib.ExitStack() as copies:
        folders = [local_folder(*model, copies) for model in config.models]
        if config.scores_text:
            read_windows(config, folders)  # which comes last, so it is to fail first
        pairs = _pairs(config, harness, folders)
        for pair in pairs:
            require_writable(pair.file.absolute())
        found = {pair.file: kept for pair in pairs if (kept := read_model(pair.file, TaskResult))}
        there = sum(pair.file in found for pair in pairs)
        # Of the same weights under two names there is one file.
        missing = list({pair.file: pair for pair in pairs if pair.file not in found}.values())
        jobs = _jobs(config, names, folders, missing)
        if config.tasks.spread:
            jobs = [one for job in jobs for one in _spread(job, harness)]
        _run(jobs, config, harness, _keeper(names, missing, found))
        seconds = perf_counter() - start
        text = evaluate_in(folders, config) if config.scores_text else None
    models = [
        {
            pair.task: found[pair.file].model_copy(update={"model": name})
            for pair in pairs
            if pair.model == number
        }
        for number, name in enumerate(names)
    ]
    if config.tasks.samples is not None:
        _write_samples(config.tasks.samples, [r for model in models for r in model.values()])
    return TaskReport(
        models=tuple(names),
        rows=rows([[*model.values(), *harness.aggregated(model)] for model in models]),
        lm_eval=harness.version,
        dtype=config.dtype,
        limit=config.tasks.limit,
        chat_template=config.tasks.chat_template,
        kept=there,
        seconds=seconds,
        text=text,
    )


def _everywhere(config: EvaluationConfig, names: Sequence[str]) -> EvaluationConfig:
    """Return the request with a folder of tasks that means the same to every worker.

    Raises ConfigError if models in an object store are to be spread, of which nodes have no copy.
    """
    if config.tasks.spread:
        require_no_urls(names, "--spread")
    if config.tasks.folder is None:
        return config
    folder = config.tasks.folder.absolute()
    tasks = config.tasks.model_copy(update={"folder": folder})
    return config.model_copy(update={"tasks": tasks})


def _pairs(config: EvaluationConfig, harness: Harness, folders: Sequence[Path]) -> list[Pair]:
    """Return every model and task, with a file that is named by all that their figures depend on:
    the files of the model, the task, the dtype and the kind of device.
    """
    device = _device(config)
    found = []
    for number, folder in enumerate(folders):
        model = [harness.checksums(folder), config.dtype, device]
        for task, identity in harness.identities.items():
            plain = re.sub(r"[^\w.-]+", "_", task)
            name = f"{plain}.{fingerprint([model, identity])}.json"
            found.append(Pair(number, task, (config.tasks.results or _RESULTS) / name))
    return found


def _device(config: EvaluationConfig) -> str:
    """Return the kind of device that figures are of; only its jobs know that of a cluster."""
    if config.tasks.spread:
        return f"{config.device} of a cluster"
    kind = find_device(config.device).type
    return f"{config.device_map} on {kind}" if config.device_map else kind


def _keeper(
    names: Sequence[str], missing: Sequence[Pair], found: dict[Path, TaskResult]
) -> Callable[[TaskResult], None]:
    """Return what writes a result to its file, adds it to those that are `found`, and says so."""
    files = {(names[pair.model], pair.task): pair.file for pair in missing}
    wanted = len(found) + len(missing)

    def keep(result: TaskResult) -> None:
        file = files[result.model, result.task]
        write_text(file, result.model_dump_json() + "\n")
        found[file] = result
        log.info(
            "%s, %s: %d documents in %.1f s; %d of %d",
            *(result.task, Path(result.model).name, result.documents, result.seconds),
            *(len(found), wanted),
        )

    return keep


def _jobs(
    config: EvaluationConfig, names: Sequence[str], folders: Sequence[Path], pairs: Iterable[Pair]
) -> list[Job]:
    """Return one job for each model."""
    tasks: dict[int, list[str]] = {}
    for pair in pairs:
        tasks.setdefault(pair.model, []).append(pair.task)
    jobs = []
    for number, missing in tasks.items():
        name, (model, revision) = names[number], on_every_node(names[number], folders[number])
        jobs.append(Job(name, model, revision, tuple(missing), config))
    return jobs


def _spread(job: Job, harness: Harness) -> Iterator[Job]:
    """Yield a job for each task of one, which prepares no other."""
    for task in job.tasks:
        tasks = job.config.tasks.model_copy(update={"names": (harness.named[task],)})
        config = job.config.model_copy(update={"tasks": tasks})
        yield job._replace(tasks=(task,), config=config)


def _run(
    jobs: Sequence[Job],
    config: EvaluationConfig,
    harness: Harness,
    keep: Callable[[TaskResult], None],
) -> None:
    if config.tasks.spread and jobs:
        from pipeline.cluster.jobs import spread  # ray loads only when needed

        named = [(f"{job.tasks[0]}, {job.name}", job) for job in jobs]
        spread(_only_result, named, config.cluster, keep)
        return
    for job in jobs:
        for result in run_job(job, harness):
            keep(result)


def _only_result(job: Job) -> TaskResult:
    [result] = run_job(job)
    return result


def _write_samples(path: Path, results: Iterable[TaskResult]) -> None:
    """Write a row for every document of every task, model and filter."""
    table = [
        {"model": result.model, "task": result.task}
        | answer.model_dump(exclude={"scores"})
        | {"scores": list(answer.scores.items())}
        for result in results
        for answer in result.answers
    ]
    texts = ["model", "task", "filter", "doc", "target", "responses"]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("document", pa.int64()),
            ("scores", pa.map_(pa.string(), pa.float64())),
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, schema), path)
