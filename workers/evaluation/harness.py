"""Tasks of lm-eval (EleutherAI's evaluation harness), on models that this program loads itself."""

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from schemas.errors import ConfigError, TextError
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from schemas.result.tasks import TaskResult
from schemas.run.identity import fingerprint
from workers.checkpoint.fetching import resolve
from workers.evaluation.task_results import as_json, group_result, row_of, task_result
from workers.model.loading import load_model, load_tokenizer
from workers.process.devices import free_cached
from workers.storage.files import sha256_of

_MEANING = 2  # raised whenever a kept result changes its meaning
_COMPUTES = (".json", ".jinja", ".model", ".py", ".safetensors", ".txt")
_LIBRARIES = ("lm_eval", "torch", "transformers", "tokenizers")


class Job(NamedTuple):
    """Tasks to run on one model: a name for people, and a folder or a hub id at a revision."""

    name: str
    model: str
    revision: str | None
    tasks: tuple[str, ...]
    config: EvaluationConfig


class Harness:
    """The tasks that a request names, with their documents.

    `tasks` are lm-eval's own tasks by name, each `named` by a name of the request; `groups` are its
    groups that have figures of their own.
    `checksums` of a model's folder are of the files that its figures depend on, read once.
    Raises ConfigError if lm-eval cannot be imported or knows no task of a name, TextError if the
    documents of a task cannot be had.
    """

    def __init__(self, config: TasksConfig) -> None:
        if config.folder is not None and not config.folder.is_dir():
            raise ConfigError(f"tasks.folder {config.folder}: no such folder; check the path")
        self.config = config
        self._lm_eval = _import_lm_eval()
        self._manager = _manager(config)
        self.tasks: dict[str, Any] = {}
        self.named: dict[str, str] = {}
        self.groups: dict[str, Any] = {}
        self.checksums = cache(_checksums)
        for name in config.asked:
            found = self._load(name)
            self.tasks |= found["tasks"]
            self.named |= dict.fromkeys(found["tasks"], name)
            self.groups |= {k: v for k, v in found["groups"].items() if v.has_aggregation}

    def _load(self, name: str) -> Any:
        if name not in self._manager.all_tasks:
            near = get_close_matches(name, self._manager.all_tasks, n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ConfigError(
                f"tasks.names: lm-eval {self.version} knows no {name!r}{hint}. For a task of your "
                "own name the folder of its YAML file with --task-folder; `lm-eval validate "
                f"--tasks {name} --include_path FOLDER` says what is wrong with the file"
            )
        try:
            return self._manager.load([name])
        except Exception as error:  # of data sets, of the hub, of YAML, of a task's own code
            raise TextError(
                f"task {name}: lm-eval cannot prepare it ({type(error).__name__}: {error}); "
                "its documents must be on this machine, or the hub within reach"
            ) from error

    @property
    def version(self) -> str:
        return str(self._lm_eval.__version__)

    @cached_property
    def identities(self) -> dict[str, str]:
        """What the numbers of each task depend on, besides the model: its definition, the
        documents, the settings, the libraries.
        """
        asked = self.config.model_dump(mode="json", include={"limit", "fewshot", "chat_template"})
        common = [_MEANING, asked, [importlib.metadata.version(name) for name in _LIBRARIES]]
        return {
            name: fingerprint([common, *self._described(task)]) for name, task in self.tasks.items()
        }

    def _described(self, task: Any) -> list[str]:
        """Return a task's definition, and a fingerprint of the documents that it takes."""
        documents = list(islice(task.eval_docs, self.config.limit))
        examples = (
            list(task.fewshot_docs()) if self.config.fewshot or task.config.num_fewshot else []
        )
        definition = task.config.to_dict(keep_callable=True)
        return [as_json(definition), fingerprint(as_json([documents, examples]))]

    def run(self, lm: Any, name: str, model: str) -> TaskResult:
        """Run a model on one task. Raises NumericsError if a log-likelihood is not finite."""
        start = perf_counter()
        try:
            found = self._lm_eval.simple_evaluate(
                lm,
                tasks=[self.tasks[name]],
                num_fewshot=self.config.fewshot,
                limit=self.config.limit,
                apply_chat_template=self.config.chat_template,
                task_manager=self._manager,
            )
        except ValueError as error:  # as of a task that runs what a model writes
            raise ConfigError(f"task {name}: lm-eval does not run it ({error})") from error
        return task_result(found, name, model, self.version, perf_counter() - start)

    def aggregated(self, results: Mapping[str, TaskResult]) -> list[TaskResult]:
        """Return what lm-eval makes of a model's results by task for each group of tasks."""
        rows = {name: row_of(result) for name, result in results.items()}
        found = []
        for group in self.groups.values():
            members = [results[task.task_name] for task in group.get_all_tasks()]
            row = group.aggregate(rows)
            found.append(group_result(group.name, str(group.version), row, members))
        return found


def _checksums(folder: Path) -> dict[str, str]:
    files = (path.name for path in folder.iterdir() if path.is_file() and path.suffix in _COMPUTES)
    return sha256_of(folder, sorted(files))


def run_job(job: Job, harness: Harness | None = None) -> Iterator[TaskResult]:
    """Load a model, yield its result on each task of a job, and free it.

    Without a `harness`, as in another process, the tasks are prepared here.
    """
    config = job.config
    harness = harness or Harness(config.tasks)
    folder = resolve(job.model, job.revision)
    lm = _language_model(folder, config)
    try:
        for name in job.tasks:
            yield harness.run(lm, name, job.name)
    finally:
        del lm
        free_cached()  # parts of a model may refer to one another


def _language_model(folder: Any, config: EvaluationConfig) -> Any:
    """Wrap a loaded checkpoint for lm-eval."""
    hflm = import_module("lm_eval.models.huggingface").HFLM
    with _errors_only("lm_eval.models.huggingface"):  # it warns of every model that comes loaded
        return hflm(
            pretrained=load_model(
                folder, config.dtype, config.device, config.trust_remote_code, config.device_map
            ),
            tokenizer=load_tokenizer(folder, config.trust_remote_code),
            backend="causal",
            batch_size=config.tasks.batch_size,
        )


def _manager(config: TasksConfig) -> Any:
    """Return lm-eval's index of tasks: of the folder alone if that is enough, for the index of its
    own 14,000 takes seconds.
    """
    if config.folder is None:
        return _own_tasks()
    make = import_module("lm_eval.tasks").TaskManager
    folder = str(config.folder.absolute())
    there = make(include_path=folder, include_defaults=False)
    if _complete(there.task_index, config.asked):
        return there
    return make(include_path=folder)


@cache
def _own_tasks() -> Any:
    """Return the index of lm-eval's own tasks, which stay the same while this process lives."""
    return import_module("lm_eval.tasks").TaskManager()


def _complete(index: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether an index has all of the names, and all members of the groups among them."""
    wanted, seen = list[Any](names), set[str]()
    while wanted:
        name = wanted.pop()
        if not isinstance(name, str) or name not in index:
            return False
        members = (index[name].cfg or {}).get("task")
        if name not in seen and isinstance(members, list):
            wanted += [m.get("group", m.get("task")) if isinstance(m, dict) else m for m in members]
        seen.add(name)
    return True


def _import_lm_eval() -> Any:
    try:
        import_module("accelerate")  # lm-eval's models need it, but lm-eval does not ask for it
        return import_module("lm_eval")
    except ImportError as error:
        raise ConfigError(
            f"tasks need lm-eval, which cannot be imported here ({error}); install it with "
            "`pip install 'svdllm[tasks]'`, or everything in requirements.lock with `make install`"
        ) from error


@contextlib.contextmanager
def _errors_only(logger: str) -> Iterator[None]:
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)
