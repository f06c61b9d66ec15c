"""Figures of tasks as metadata that the hub reads."""

import math

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from pipeline.report.model_index import model_index, model_index_yaml
from schemas.result.tasks import Row, Score, TaskReport
from tests import reports


def row(task: str, value: float, kind: str = "none") -> Row:
    return Row(
        task=task,
        metric="acc",
        filter=kind,
        version="1.0",
        documents=100,
        fewshot=4,
        higher_is_better=True,
        scores=(Score(value=0.5, stderr=0.05), Score(value=value, stderr=0.05)),
        difference=Score(value=value - 0.5, stderr=0.01),
    )


def report(*rows: Row, text: bool = True) -> TaskReport:
    return TaskReport(
        models=("base", "out/small"),
        rows=rows,
        lm_eval="0.4.13",
        dtype="float32",
        limit=100,
        chat_template=False,
        kept=0,
        seconds=1.0,
        text=reports.evaluation() if text else None,
    )


def test_the_hub_reads_the_figures_of_the_last_model() -> None:
    done = report(row("addition", 0.4), row("written", 0.25, "number"))
    found = yaml.safe_load(model_index_yaml("out/small", done))
    name, entries = model_index_to_eval_results(found["model-index"])
    assert name == "small"
    assert [(e.dataset_type, e.metric_type, e.metric_value, e.metric_name) for e in entries] == [
        ("test.txt", "perplexity", 25.9, "perplexity"),
        ("addition", "acc", 0.4, "acc"),
        ("written", "acc", 0.25, "acc, number"),
    ]
    assert entries[1].dataset_args == {"num_few_shot": 4, "documents": 100, "version": "1.0"}


def test_what_is_not_finite_stays_out() -> None:
    [entry] = model_index("small", report(row("addition", math.inf), text=False))["model-index"]
    assert entry["results"] == []
