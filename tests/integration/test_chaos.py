"""A short form of the chaos campaign: a node, a worker and the driver of one run are killed."""

import re
from pathlib import Path

import pytest

from tests.integration.processes import run
from tests.models import tiny_model

KILLS = ("node, replaced@calibrate forward", "worker@factorise", "driver@truncate")


@pytest.mark.slow
def test_a_run_whose_worker_node_and_driver_die_ends_with_the_same_bytes(
    text: Path, tmp_path: Path
) -> None:
    """In a process of its own, because this one may have another Ray."""
    model = tiny_model(tmp_path / "model", num_hidden_layers=6)
    asked = ["--runs", "1", "--model", str(model), "--calibration", str(text)]
    asked += ["--work-dir", str(tmp_path), *(word for kill in KILLS for word in ("--kill", kill))]
    done = run(asked, ("-m", "tests.campaigns.chaos"))
    assert done.code == 0, done.log
    counts = dict(re.findall(r"│ ([a-zA-Z0-9 -]+?) +│ (\d+) ", done.printed))
    assert int(counts["kills"]) == len(KILLS)
    assert int(counts["resumes"]) >= 1  # after the driver
    assert int(counts["items made"]) > 0
    assert int(counts["items repeated"]) == 0
    assert int(counts["runs with another SHA-256 of a weight file"]) == 0
