"""The session with Ray: an embedded one that is started, or a cluster that is joined."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants, utils
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.job_config import JobConfig

from pipeline.cluster.joining import require_answer
from pipeline.cluster.object_store import within_memory
from pipeline.search_path import for_workers
from schemas.errors import ClusterError
from schemas.request.groups import ClusterConfig
from workers.process.logs import as_json

_SET = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")  # for an embedded Ray


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig, threads: int, store_bytes: int = 0) -> Iterator[None]:
    """Join the cluster that was named, or that this Ray job runs on; else start an embedded Ray.

    An embedded Ray has room for `cluster.workers` workers of `threads` CPUs each, also if this
    machine has fewer CPUs, and for `store_bytes` of hidden states if memory allows. If the caller
    has already initialised Ray, it is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    with contextlib.ExitStack() as at_end:
        with _sigterm_left_alone():
            _connect(cluster, threads, store_bytes, at_end)
        at_end.callback(ray.shutdown)
        yield


@contextlib.contextmanager
def _sigterm_left_alone() -> Iterator[None]:
    """Keep Ray from handling SIGTERM while it starts: the SystemExit that its handlers raise may be
    lost, in a destructor say, and the run would go on. What has been started ends with the process.
    """
    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install


def _connect(
    cluster: ClusterConfig, threads: int, store_bytes: int, at_end: contextlib.ExitStack
) -> None:
    setting = "cluster.address" if cluster.address else "RAY_ADDRESS"
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        at_end.enter_context(_outside_any_cluster())
        _start_embedded(cluster, threads, store_bytes)
        return
    job: dict[str, Any] = {} if "://" in address else {"job_config": _Job()}  # a client adds none
    try:
        require_answer(address, setting)
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            # When we log JSON, workers log to Ray's own files only: Ray would prefix each line.
            log_to_driver=not as_json(),
            **job,
        )
    except (ConnectionError, ValueError, RayError) as error:
        why = " ".join(str(error).split())
        raise ClusterError(f"{setting} {address!r}: no Ray cluster there ({why})") from None
    except RuntimeError as error:  # ray compares its own version and Python's
        if "ersion mismatch" not in str(error):
            raise
        raise ClusterError(
            f"{setting} {address!r}: driver and cluster differ ({error}); start the driver "
            "with the Ray and the Python of the cluster, or install the same ones there"
        ) from None


@contextlib.contextmanager
def _outside_any_cluster() -> Iterator[None]:
    """Let Ray listen on loopback only, and ask for a secret that this session alone knows.

    Both hold for the process, so they end with the session: the next one may join a cluster.
    """
    absent = [name for name in _SET if name not in os.environ]
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:  # Ray sets it when it finds a token
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_constants.ENABLE_RAY_CLUSTER = False
    AuthenticationTokenLoader.instance().reset_cache()  # a joined cluster may have had another one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        for name in absent:
            os.environ.pop(name, None)
        Config.initialize("")  # Ray remembers the mode and the token that it has read
        AuthenticationTokenLoader.instance().reset_cache()


def _start_embedded(cluster: ClusterConfig, threads: int, store_bytes: int) -> None:
    cores = len(os.sched_getaffinity(0))
    wanted = (cluster.workers or 1) * threads
    ray.init(
        address="local",
        num_cpus=max(cores, wanted),
        object_store_memory=within_memory(store_bytes),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        job_config=_Job(),
    )


class _Job(JobConfig):
    """A job whose workers import the installed modules, wherever the driver was started.

    Ray puts the script's folder and the working directory first on the workers' path, where a
    folder called workers or datasets hides ours or a library. It does not if a job brings its own.
    """

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=for_workers())

    def _runtime_env_has_working_dir(self) -> bool:
        return True
