"""The figures of a model as `model-index`, metadata of a card that the hub shows and compares."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from schemas.printable import printable
from schemas.result.evaluation import EvaluationReport
from schemas.result.tasks import Row, TaskReport


def model_index(name: str, report: EvaluationReport | TaskReport) -> dict[str, Any]:
    """Return the metadata of the last model of a report; numbers that are not finite stay out."""
    text, rows = (report.text, report.rows) if isinstance(report, TaskReport) else (report, ())
    found = [] if text is None else [_of_text(text)]
    found += map(_of_task, rows)
    results = [entry for entry in found if math.isfinite(entry["metrics"][0]["value"])]
    return {"model-index": [{"name": printable(name), "results": results}]}


def _of_text(report: EvaluationReport) -> dict[str, Any]:
    windows = {"windows": report.models[-1].windows, "sequence_length": report.sequence_length}
    return _entry(Path(report.text).name, windows, "perplexity", report.models[-1].perplexity)


def _of_task(row: Row) -> dict[str, Any]:
    chosen = () if row.filter == "none" else (row.filter,)
    shown = {"num_few_shot": row.fewshot, "documents": row.documents, "version": row.version}
    return _entry(row.task, shown, row.metric, row.scores[-1].value, chosen)


def _entry(
    dataset: str, how: dict[str, Any], metric: str, value: float, chosen: Iterable[str] = ()
) -> dict[str, Any]:
    name = printable(dataset)
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": name, "type": name, "args": how},
        "metrics": [{"type": metric, "value": value, "name": ", ".join([metric, *chosen])}],
    }


def model_index_yaml(checkpoint: str, report: EvaluationReport | TaskReport) -> str:
    """Return the metadata of a checkpoint as YAML, for `huggingface_hub.metadata_update`."""
    found = model_index(Path(checkpoint).name, report)
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))
