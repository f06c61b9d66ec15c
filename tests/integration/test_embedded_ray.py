"""The Ray that a command starts for itself, in a folder of a stranger."""

import os
import subprocess
import sys

import pytest

from tests.documents import ROOT

# In a process of its own, as the installed command is: the device that a worker finds, for which it
# needs this program, torch and datasets; then what all processes of that Ray listen on, as /proc
# tells it.
SCRIPT = """
import contextlib
import os
from pathlib import Path
import ray
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig
from workers.actors.probe import probe

def is_of(session, process):
    try:
        return session in (process / "cmdline").read_text()
    except OSError:
        return False

with ray_session(ClusterConfig(workers=1, device="cpu"), 1):
    print(ray.get(probe.remote("cpu", "float32", "F32")).device)
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    processes = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_of(session, p)]
    sockets = set()
    for process in [*processes, Path("/proc/self")]:
        try:
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(descriptor))
        except OSError:  # it has ended
            pass
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                print(fields[1].partition(":")[0])
"""
LOOPBACK = {"0100007F", "0" * 16 + "FFFF00000100007F", "0" * 24 + "01000000"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("strange")
    for name in ("schemas", "workers", "pipeline", "runtime", "datasets", "torch"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('a stranger')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_workers_find_what_is_installed_whatever_the_working_directory_holds(
    printed: list[str],
) -> None:
    assert printed[0] == "cpu"


def test_it_listens_on_loopback_alone(printed: list[str]) -> None:
    addresses = printed[1:]
    assert len(addresses) >= 3  # the control store, the node, its object store
    assert set(addresses) <= LOOPBACK
