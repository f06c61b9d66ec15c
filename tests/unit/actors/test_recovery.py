"""What a training worker leaves on its node belongs to its run alone."""

from pathlib import Path

from tests.recovery import job_of
from workers.actors.recovery import temporary


def test_the_same_request_in_another_run_directory_has_folders_of_its_own(tmp_path: Path) -> None:
    assert temporary(job_of(tmp_path / "one")) == temporary(job_of(tmp_path / "one"))
    assert temporary(job_of(tmp_path / "one")) != temporary(job_of(tmp_path / "other"))
