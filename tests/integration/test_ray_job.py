"""`ray job submit` from a bare working directory to a local cluster of two nodes with fake GPUs."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.compress import compress
from schemas.request.config import RunConfig
from tests.integration.conftest import Reference
from tests.integration.rays import small_ray
from tests.integration.support import (
    KINDS,
    ask,
    copy_packages,
    flags,
    item_attempts,
    until,
    weight_sums,
)
from tests.items import local
from tests.models import tiny_model
from tests.ports import free_port
from workers.checkpoint.verify import require, verify_checkpoint

RAY = Path(sys.executable).with_name("ray")


class Jobs(NamedTuple):
    """The job server of a cluster, and a working directory with nothing but the packages."""

    address: str
    bare: Path

    def submit(self, config: RunConfig, submission: str) -> tuple[int, str]:
        """Exit status and output of `ray job submit`, once the cluster has an agent for jobs."""
        command = [str(RAY), "job", "submit", "--address", self.address]
        command += ["--submission-id", submission, "--working-dir", str(self.bare)]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        while True:
            job = subprocess.run(
                [*command, "--", *program(config)],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            printed = job.stdout + job.stderr
            if "No available agent" not in printed:
                return job.returncode, printed


def program(config: RunConfig) -> list[str]:
    """What a job runs."""
    arguments = flags(config)
    arguments[arguments.index("--device") + 1] = "auto"
    return [sys.executable, "-m", "pipeline", *arguments]


@pytest.fixture(scope="module")
def jobs(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A head without CPUs, and two nodes with a GPU each."""
    port, agent = free_port(), free_port()
    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "dashboard_agent_listen_port": agent,  # the default is that of the tests' own Ray
        "object_store_memory": 100 * 1024**2,
    }
    bare = copy_packages(tmp_path_factory.mktemp("bare") / "bare")
    with small_ray():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 * 1024**2)
        yield Jobs(f"http://127.0.0.1:{port}", bare)
        cluster.shutdown()  # type: ignore[no-untyped-call]


def test_a_submitted_job_compresses_on_every_gpu(jobs: Jobs, text: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", num_hidden_layers=4)
    config = ask(model, text, tmp_path / "output", workers=2)
    code, printed = jobs.submit(config, "once")
    assert code == 0, printed
    require(verify_checkpoint(local(config.output), published=True), local(config.output))
    assert "Ray gave each worker a GPU" in printed
    assert "2 layer shards" in printed
    record = json.loads((local(config.run_folder) / "run.json").read_text())
    assert len(record["plan"]["shards"]) == 2
    alone = ask(model, text, tmp_path / "alone", workers=1)
    compress(alone)
    assert weight_sums(local(config.output)) == weight_sums(local(alone.output))

    again, printed = jobs.submit(config, "once")
    assert again != 0
    assert "already exists" in printed


def test_a_stopped_job_is_continued_by_another(
    jobs: Jobs, reference: Reference, tmp_path: Path
) -> None:
    update = {"output": tmp_path / "output", "run_dir": tmp_path / "run"}
    entrypoint = shlex.join(program(reference.config.model_copy(update=update)))
    client = JobSubmissionClient(jobs.address)

    def start(submission: str) -> None:
        directory = {"working_dir": str(jobs.bare)}
        client.submit_job(entrypoint=entrypoint, submission_id=submission, runtime_env=directory)

    start("stopped")

    def under_way() -> bool:
        ended = client.get_job_status("stopped").is_terminal()
        assert not ended, client.get_job_logs("stopped")
        return len(item_attempts(tmp_path / "run", "bases")) > 2

    until(under_way, "a few items are there")
    client.stop_job("stopped")
    until(lambda: client.get_job_status("stopped").is_terminal(), "the job has ended")
    assert client.get_job_status("stopped") == JobStatus.STOPPED
    assert not (tmp_path / "output").exists()
    before = item_attempts(tmp_path / "run", *KINDS)

    start("continued")
    until(lambda: client.get_job_status("continued").is_terminal(), "the job has ended")
    printed = client.get_job_logs("continued")
    assert client.get_job_status("continued") == JobStatus.SUCCEEDED, printed
    after = item_attempts(tmp_path / "run", *KINDS)
    assert before.items() <= after.items()  # none was made again
    assert weight_sums(tmp_path / "output") == weight_sums(local(reference.output.path))
