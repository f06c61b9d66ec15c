"""Tasks that are spread over a cluster say what they say in one process."""

from pathlib import Path

import pytest

from pipeline.tasks import evaluate_tasks
from schemas.request.evaluation import EvaluationConfig, TasksConfig
from tests.models import tiny_model
from tests.tasks import write_choice, write_written


@pytest.fixture(scope="module")
def config_of(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    root = tmp_path_factory.mktemp("tasks")
    for write in (write_choice, write_written):
        write(root / "tasks")
    return EvaluationConfig(
        checkpoint=str(tiny_model(root / "small", seed=1)),
        baseline=str(tiny_model(root / "base")),
        device="cpu",
        tasks=TasksConfig(
            names=("choice", "written"), folder=root / "tasks", results=root / "results"
        ),
    )


def spread(config: EvaluationConfig, folder: Path) -> EvaluationConfig:
    tasks = config.tasks.model_copy(update={"spread": True, "results": folder})
    return config.model_copy(update={"tasks": tasks})


def test_jobs_on_a_cluster_give_the_same_rows(
    local_ray: None, config_of: EvaluationConfig, tmp_path: Path
) -> None:
    config = spread(config_of, tmp_path)
    report = evaluate_tasks(config)
    assert report.rows == evaluate_tasks(config_of).rows
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert evaluate_tasks(config).kept == 4
