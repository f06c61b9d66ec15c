"""`ray job submit` from a bare working directory to a local cluster of two nodes with fake GPUs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipeline.compress import compress
from tests.integration.support import ask, copy_packages, flags, weight_sums
from tests.items import local
from tests.models import tiny_model
from workers.verify import require, verify_checkpoint

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A head without CPUs and two workers with a GPU each; the address of its job server."""
    port, agent = free_port(), free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "dashboard_agent_listen_port": agent,  # the default is that of the tests' own Ray
            "object_store_memory": 100 * 1024**2,
        },
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 * 1024**2)
    yield f"http://127.0.0.1:{port}"
    cluster.shutdown()  # type: ignore[no-untyped-call]


def submit(address: str, working_dir: Path, entrypoint: list[str]) -> tuple[int, str]:
    """Exit status and output of `ray job submit`, once the cluster has an agent that takes jobs."""
    command = [str(RAY), "job", "submit", "--address", address, "--working-dir", str(working_dir)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    for _ in range(30):
        job = subprocess.run(
            [*command, "--", *entrypoint],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env=environment,
        )
        printed = job.stdout + job.stderr
        if "No available agent" not in printed:
            break
    return job.returncode, printed


def test_a_submitted_job_compresses_on_every_gpu(
    dashboard: str, text: Path, tmp_path: Path, local_ray: None
) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=4)
    config = ask(model, text, tmp_path / "output", workers=2)
    bare = copy_packages(tmp_path / "bare")
    arguments = flags(config)
    at = arguments.index("--device")
    arguments[at + 1] = "auto"
    code, printed = submit(dashboard, bare, [sys.executable, "-m", "pipeline", *arguments])
    assert code == 0, printed
    require(verify_checkpoint(local(config.output), published=True), local(config.output))
    assert "Ray gave each worker a GPU" in printed
    assert "2 layer shards" in printed
    record = json.loads((local(config.run_folder) / "run.json").read_text())
    assert len(record["plan"]["shards"]) == 2
    alone = ask(model, text, tmp_path / "alone", workers=1)
    compress(alone)
    assert weight_sums(local(config.output)) == weight_sums(local(alone.output))
