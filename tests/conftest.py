"""Set before transformers, datasets or ray is imported: no test talks to a network."""

import gc
import os
import shutil
import tempfile

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # the models are tiny: a second thread costs more than it gives
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_AUTO_CONNECT="0",  # else a call on no Ray starts one, in seconds, unseen
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.1",  # else two seconds for every state that is saved
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # a process for each training
    RAY_enable_pipe_based_agent_to_parent_health_check="1",  # agents may be no child of a raylet
    # A busy machine may start a process of Ray later than in half a minute.
    RAY_agent_register_timeout_ms="1800000",
    RAY_worker_register_timeout_seconds="1800",
    RAY_gcs_server_port_wait_time_s="1800",
    RAY_DASHBOARD_STARTUP_TIMEOUT_S="1800",
    REPORTER_UPDATE_INTERVAL_MS="600000",  # of Ray's figures of processes, which no test reads
    # A submitted job joins the cluster that was last started in this folder. Tests run in several
    # processes, so each has its own; its name is short because sockets lie in it.
    RAY_TMPDIR=tempfile.mkdtemp(prefix="ray", dir="/tmp"),
)
os.environ.pop("RAY_ADDRESS", None)  # of a cluster that a test would join

from jaxtyping import install_import_hook  # after the environment is set

import tests.shapes  # noqa: F401 (found by its name below)

# No test cuts the power, which is all that a flush of a disk guards against.
os.fsync = lambda fd: None

# Shapes and dtypes that annotations of the mathematics state are checked at every call of a test.
# The rest of workers.allocation states none, and calls so often that its checks took half the time.
install_import_hook(
    ["workers.allocation.budget", "workers.calibration", "workers.truncation"],
    "tests.shapes.checked",
)


def pytest_collection_finish() -> None:
    """Never look at the million objects of the libraries again for garbage."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Remove what every Ray of this process has written."""
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
