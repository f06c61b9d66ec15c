"""A Ray that a command starts for itself is reached from this host alone."""

import subprocess
import sys

from tests.integration.support import ROOT

# In a process of its own: what its Ray listens on, of all its processes, as /proc tells it.
SCRIPT = """
import os
from pathlib import Path
import ray
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig

def is_of(session, process):
    try:
        return session in (process / "cmdline").read_text()
    except OSError:
        return False

with ray_session(ClusterConfig(workers=1), 1):
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    processes = [p for p in Path("/proc").iterdir() if p.name.isdigit() and is_of(session, p)]
    sockets = set()
    for process in [*processes, Path("/proc/self")]:
        for descriptor in (process / "fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                pass
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                print(fields[1].partition(":")[0])
"""
LOOPBACK = {"0100007F", "0" * 16 + "FFFF00000100007F", "0" * 24 + "01000000"}


def test_an_embedded_ray_listens_on_loopback_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    addresses = done.stdout.split()
    assert len(addresses) >= 3  # the control store, the node, its object store
    assert set(addresses) <= LOOPBACK
