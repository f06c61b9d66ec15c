"""Tasks as jobs of a cluster, and what is looked at before them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import tasks
from pipeline.tasks import evaluate_tasks
from schemas.errors import ConfigError, TextError
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


def test_a_file_in_the_place_of_the_results_is_refused_before_a_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "local_folder", lambda *_: tmp_path)
    (tmp_path / "file").write_text("")
    asked = TasksConfig(names=("choice",), results=tmp_path / "file")
    harness: Any = SimpleNamespace(identities={"choice": "1"}, checksums=lambda folder: {})
    with pytest.raises(ConfigError, match="file is a file, not a folder"):
        evaluate_tasks(EvaluationConfig(checkpoint=str(tmp_path), tasks=asked), harness)
