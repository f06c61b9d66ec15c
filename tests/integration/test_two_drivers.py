"""Two drivers at once, and one that comes back after another has taken over from it."""

import re
import signal
from pathlib import Path

import pytest
import ray

from schemas.request.config import RunConfig
from tests.integration.conftest import Reference
from tests.integration.processes import Start, run
from tests.integration.support import KINDS, ask, file_sums, flags, item_attempts, until
from tests.items import local
from tests.models import tiny_model


@pytest.mark.slow
def test_of_two_drivers_one_writes_and_the_other_ends_cleanly(
    local_ray: None, text: Path, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model")
    asked = ["--repetitions", "1", "--model", str(model), "--calibration", str(text)]
    asked += ["--kind", "one run directory", "--kind", "one output"]
    asked += ["--address", ray.get_runtime_context().gcs_address, "--work-dir", str(tmp_path)]
    done = run(asked, ("-m", "tests.campaigns.two_drivers"))
    assert done.code == 0, done.log
    assert done.log.count("'written'") == 2
    assert len(re.findall(r"one (?:run directory|output) .* 1 │$", done.printed, re.M)) == 2


def test_a_driver_that_lost_its_run_directory_changes_nothing(
    local_ray: None, reference: Reference, text: Path, tmp_path: Path, start: Start
) -> None:
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    config: RunConfig = ask(Path(reference.config.model), text, tmp_path / "out")
    late = start(flags(config), environment=address)
    until(lambda: late.said("assemble: "), "the checkpoint is being verified")
    late.send(signal.SIGSTOP)
    other = start(flags(config), environment=address, program=("-m", "tests.integration.elsewhere"))
    assert other.wait() == 0, other.log
    assert "looking for 3 s whether it is still there" in other.log
    published = file_sums(local(config.output))
    made = item_attempts(config.run_folder, *KINDS)
    changed = {path: path.stat().st_mtime_ns for path in local(config.output).iterdir()}

    late.send(signal.SIGCONT)
    assert late.wait() == 3, late.log
    assert "has taken it" in late.log
    assert "this one stops, and publishes nothing" in late.log
    assert "written and verified" not in late.log
    assert file_sums(local(config.output)) == published
    assert {path: path.stat().st_mtime_ns for path in local(config.output).iterdir()} == changed
    assert item_attempts(config.run_folder, *KINDS) == made
