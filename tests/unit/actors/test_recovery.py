"""What a training worker leaves on its node belongs to its run alone."""

from pathlib import Path
from typing import Any

from schemas.request.config import RunConfig
from workers.actors.recovery import temporary
from workers.recovery.job import Job


def job(run_dir: Path) -> Job:
    config = RunConfig(model="m", output=run_dir.parent / "out", run_dir=run_dir, ratio=(0.2,))
    rest: Any = dict.fromkeys(Job._fields)
    return Job(**rest | {"config": config, "identity": "same"})


def test_the_same_request_in_another_run_directory_has_folders_of_its_own(tmp_path: Path) -> None:
    assert temporary(job(tmp_path / "one")) == temporary(job(tmp_path / "one"))
    assert temporary(job(tmp_path / "one")) != temporary(job(tmp_path / "other"))
