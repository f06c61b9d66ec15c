"""Small tasks for lm-eval, as YAML files with documents beside them."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from schemas.request.evaluation import EvaluationConfig, TasksConfig
from tests.models import tiny_model
from tests.prose import prose

DOCUMENTS = 24
GROUP = """
group: both
task: [choice, other]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1.0}
"""


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **fields: Any) -> Path:
    """Write a task and its documents into a folder; return the file of the documents."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f"{name}.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "doc_to_text": "{{query}}",
        "metadata": {"version": 2.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | fields))
    return path


def write_choice(folder: Path, name: str = "choice", seed: int = 0) -> Path:
    """A task of choosing the word that follows, among three."""
    words, rng = prose(8000).split(), random.Random(seed)
    documents = []
    for _ in range(DOCUMENTS):
        start = rng.randrange(len(words) - 9)
        choices, gold = [words[start + 8], *rng.sample(words, 2)], rng.randrange(3)
        choices[0], choices[gold] = choices[gold], choices[0]
        query = " ".join(words[start : start + 8])
        documents.append({"query": query, "choices": choices, "gold": gold})
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc",)
    ]
    return write_task(
        folder,
        name,
        documents,
        output_type="multiple_choice",
        doc_to_choice="choices",
        doc_to_target="gold",
        metric_list=metrics,
    )


def write_texts(folder: Path, name: str = "texts") -> Path:
    """A task whose metric is not a mean over documents: perplexity of bytes."""
    documents = [{"query": "", "text": prose(200 + 10 * n)} for n in range(6)]
    return write_task(
        folder,
        name,
        documents,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity"}],
    )


def write_written(folder: Path, name: str = "written", **fields: Any) -> Path:
    """A task of writing a word; `fields` are of its file."""
    words = prose(4000).split()
    documents = [{"query": " ".join(words[n : n + 5]), "target": words[n + 5]} for n in range(6)]
    return write_task(
        folder,
        name,
        documents,
        output_type="generate_until",
        doc_to_target="{{target}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    )


class Models:
    """Two models and a folder of tasks."""

    def __init__(self, root: Path) -> None:
        self.base = tiny_model(root / "base")
        self.small = tiny_model(root / "[small]", seed=1, intermediate_size=40)
        self.tasks = root / "tasks"
        for write in (write_choice, write_texts, write_written):
            write(self.tasks)
        write_choice(self.tasks, "other", seed=1)
        (self.tasks / "both.yaml").write_text(GROUP)

    def request(self, results: Path, names: str = "choice", **fields: Any) -> EvaluationConfig:
        tasks = fields.pop("tasks", {})
        asked: dict[str, Any] = {"names": names, "folder": self.tasks, "results": results} | tasks
        both = {"checkpoint": str(self.small), "baseline": str(self.base), "device": "cpu"}
        return EvaluationConfig(**(both | fields | {"tasks": TasksConfig(**asked)}))
