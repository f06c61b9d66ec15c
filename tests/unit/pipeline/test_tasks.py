"""Tasks as jobs of a cluster, and what is looked at before them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import tasks
from pipeline.tasks import evaluate_tasks
from schemas.errors import TextError
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from workers.evaluation.harness import Job


def test_a_job_prepares_its_own_task_alone() -> None:
    config = EvaluationConfig(checkpoint="m", tasks=TasksConfig(names=("both", "written")))
    job = Job("m", "folder", None, ("other", "written"), config)
    harness: Any = SimpleNamespace(named={"choice": "both", "other": "both", "written": "written"})
    found = [(one.tasks, one.config.tasks.names) for one in tasks._spread(job, harness)]
    assert found == [(("other",), ("both",)), (("written",), ("written",))]


def test_a_text_is_looked_at_before_the_tasks(tmp_path: Path) -> None:
    asked = {"text": str(tmp_path / "none.txt"), "tasks": TasksConfig(names=("unknown",))}
    with pytest.raises(TextError, match=r"none\.txt"):
        evaluate_tasks(EvaluationConfig(checkpoint="m", **asked))
