"""Rays of the tests: workers and agents that start warm, and no process that no test needs."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from tests.integration import asker

# What Ray starts on every head for autoscaling and for lines of workers on a driver's terminal.
_WITHOUT = {"no_monitor": True, "include_log_monitor": False}
_NOBODY = b"127.0.0.1:1"  # where no dashboard listens


@contextlib.contextmanager
def small_ray() -> Iterator[None]:
    """A Ray that this process starts meanwhile is small; its workers and agents are forked."""
    from ray import _raylet
    from ray._private import ray_constants, services
    from ray._private.parameter import RayParams

    library: Any = _raylet  # which declares little of what it has
    ordinary, dashboard = RayParams.__init__, services.start_api_server
    interpreter = services._build_python_executable_command_memory_profileable
    agents = (
        ray_constants.PROCESS_TYPE_DASHBOARD_AGENT,
        ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT,
    )
    defaults = _WITHOUT | {"setup_worker_path": asker.__file__}

    def parameters(self: Any, *args: Any, **given: Any) -> None:
        ordinary(self, *args, **(defaults | given))

    def only_if_asked(wanted: bool | None, *args: Any, **given: Any) -> Any:
        if wanted:
            return dashboard(wanted, *args, **given)
        # Else what Ray Train asks it waits for this name, and every training ends 12 seconds later.
        names, key = library.GcsClient(address=args[2]), ray_constants.DASHBOARD_ADDRESS.encode()
        names.internal_kv_put(key, _NOBODY, True, ray_constants.KV_NAMESPACE_DASHBOARD)
        return None, None

    def forked(component: str, *args: Any, **given: Any) -> Any:
        command = interpreter(component, *args, **given)
        return [*command, asker.__file__] if component in agents else command

    with (
        patch.object(RayParams, "__init__", parameters),
        patch.object(services, interpreter.__name__, forked),
        patch.object(services, "start_api_server", only_if_asked),
    ):
        yield
