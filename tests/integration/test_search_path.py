"""Workers of a driver that was started in a folder of a stranger."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.support import ROOT

# The embedded Ray of the installed command, and a task that needs ours, torch and datasets.
SCRIPT = """
import ray
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig
from workers.actors.probe import probe

with ray_session(ClusterConfig(workers=1, device="cpu"), 1):
    print(ray.get(probe.remote("cpu", "float32", "F32")).device)
"""


def test_workers_find_what_is_installed_whatever_the_working_directory_holds(
    tmp_path: Path,
) -> None:
    for name in ("schemas", "workers", "pipeline", "runtime", "datasets", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "cpu\n"), done.stderr
