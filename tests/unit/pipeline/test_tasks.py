"""What is looked at before tasks run."""

from pathlib import Path

import pytest

from pipeline.tasks import evaluate_tasks
from schemas.errors import TextError
from schemas.request.evaluation import EvaluationConfig, TasksConfig


def test_a_text_is_looked_at_before_the_tasks(tmp_path: Path) -> None:
    asked = {"text": str(tmp_path / "none.txt"), "tasks": TasksConfig(names=("unknown",))}
    with pytest.raises(TextError, match=r"none\.txt"):
        evaluate_tasks(EvaluationConfig(checkpoint="m", **asked))
