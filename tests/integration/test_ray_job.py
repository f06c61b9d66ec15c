"""`ray job submit` from a bare working directory to a local cluster of two nodes with fake GPUs."""

import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from schemas.request.config import RunConfig
from tests.integration.conftest import Reference
from tests.integration.rays import small_ray
from tests.integration.support import KINDS, copy_packages, flags, item_attempts, until, weight_sums
from tests.items import local
from tests.ports import free_port
from workers.checkpoint.verify import require, verify_checkpoint

RAY = Path(sys.executable).with_name("ray")


class Jobs(NamedTuple):
    """The job server of a cluster, and a working directory with nothing but the packages."""

    address: str
    bare: Path

    def submit(self, config: RunConfig, submission: str) -> tuple[int, str]:
        """Exit status and output of `ray job submit`."""
        command = [str(RAY), "job", "submit", "--address", self.address]
        command += ["--submission-id", submission, "--working-dir", str(self.bare)]
        job = subprocess.run(
            [*command, "--", *program(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        return job.returncode, job.stdout + job.stderr


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


def test_a_stopped_job_is_continued_by_another_on_every_gpu(
    jobs: Jobs, config: RunConfig, reference: Reference
) -> None:
    client = JobSubmissionClient(jobs.address)
    output, run_dir = local(config.output), config.run_folder
    entrypoint, directory = shlex.join(program(config)), {"working_dir": str(jobs.bare)}

    def starts() -> bool:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id="stopped", runtime_env=directory)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            return False
        return True

    until(starts, "the cluster has an agent for jobs")

    looks = itertools.count(1)

    def under_way() -> bool:
        if next(looks) % 500 == 0:  # seldom, since the job goes on while Ray answers
            ended = client.get_job_status("stopped").is_terminal()
            assert not ended, client.get_job_logs("stopped")
        return len(item_attempts(run_dir, "bases")) > 2

    until(under_way, "a few items are there")
    client.stop_job("stopped")
    until(lambda: client.get_job_status("stopped").is_terminal(), "the job has ended")
    assert client.get_job_status("stopped") == JobStatus.STOPPED
    assert not output.exists()
    before = item_attempts(run_dir, *KINDS)

    code, printed = jobs.submit(config, "continued")
    assert code == 0, printed
    assert client.get_job_status("continued") == JobStatus.SUCCEEDED
    assert "Ray gave each worker a GPU" in printed
    assert "2 layer shards" in printed
    record = json.loads((local(run_dir) / "run.json").read_text())
    assert len(record["plan"]["shards"]) == 2
    assert before.items() <= item_attempts(run_dir, *KINDS).items()  # none was made again
    require(verify_checkpoint(output, published=True), output)
    assert weight_sums(output) == weight_sums(local(reference.output.path))
