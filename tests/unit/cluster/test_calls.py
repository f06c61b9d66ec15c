"""What Ray raises, in the words of this program."""

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from pipeline.cluster.calls import explained
from schemas.errors import (
    NumericsError,
    WorkerDiedError,
    WorkerError,
    WorkerHungError,
    WorkerStartError,
)

GONE: list[RayError] = [
    RayActorError(),
    ActorUnavailableError("no answer", None),
    OutOfMemoryError("Task was killed due to the node running low on memory.\nand more"),  # type: ignore[no-untyped-call]
    NodeDiedError("the node is gone"),  # type: ignore[no-untyped-call]
    LocalRayletDiedError(),
    ObjectLostError("00" * 28, None, "a call"),
]
REMEDIES: list[tuple[RayError, str]] = [
    (ObjectStoreFullError("full"), "--object-store-memory"),
    (OutOfDiskError("full"), "--temp-dir"),
    (RaySystemError("broken"), "ray status"),  # type: ignore[no-untyped-call]
]


def in_task(cause: Exception) -> RayTaskError:
    return RayTaskError("forward", "a traceback", cause)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_lost_process_is_a_death(error: RayError) -> None:
    """Whether the call itself was lost, or what another call had given to it."""
    for raised in (error, in_task(error)):
        found = explained(raised, "calibrate forward", 60)
        assert isinstance(found, WorkerDiedError)
        assert str(found).startswith(f"calibrate forward: a worker died ({type(error).__name__}: ")
        assert "\n" not in str(found)


@pytest.mark.parametrize(("error", "remedy"), REMEDIES, ids=lambda value: type(value).__name__)
def test_what_ray_lacks_has_a_remedy(error: RayError, remedy: str) -> None:
    found = explained(error, "load", 60)
    assert type(found) is WorkerError
    assert str(found).startswith(f"load: {type(error).__name__}: ")
    assert remedy in str(found)
    assert "start the same command again" in str(found)


def test_a_call_without_an_answer_is_a_hung_worker() -> None:
    found = explained(GetTimeoutError("late"), "load", 60)
    assert isinstance(found, WorkerHungError)
    assert str(found).startswith("load: no result within 60 s; raise cluster.item_timeout_s")


def test_the_words_of_a_worker_are_kept() -> None:
    cause = NumericsError("layers.0.mlp.up_proj: a moment holds NaN")
    assert explained(in_task(cause), "factorise", 60) is cause


def test_an_unknown_error_says_where_it_was() -> None:
    found = explained(in_task(KeyError("x")), "factorise", 60)
    assert type(found) is WorkerError
    assert str(found).startswith("factorise: KeyError: 'x', in a worker; start the same command")


def test_an_environment_that_cannot_be_set_up_says_why() -> None:
    found = explained(RuntimeEnvSetupError("the agent\n  did not answer"), "start of a worker", 60)
    assert isinstance(found, WorkerStartError)
    assert str(found).endswith("environment could not be set up: the agent did not answer")


@pytest.mark.parametrize(
    ("traceback", "raised"),
    [
        (
            'ray::LayerShard.__init__() (pid=7)\n  File "a.py", line 1, in f\nRuntimeError: The '
            'actor failed to import:\n\nTraceback (most recent call last):\n  File "b.py", line '
            "3, in g\nModuleNotFoundError: No module named 'workers.actors'",
            "ModuleNotFoundError: No module named 'workers.actors'",
        ),
        (
            'ray::LayerShard.__init__()\n  File "a.py"\ntorch.AcceleratorError: CUDA error: no '
            "kernel image\nCompile with TORCH_USE_CUDA_DSA to see more.\n",
            "torch.AcceleratorError: CUDA error: no kernel image",
        ),
        ('ray::LayerShard.__init__()\n  File "a.py", line 1\nMemoryError', "MemoryError"),
    ],
)
def test_a_constructor_that_fails_is_what_it_raised(traceback: str, raised: str) -> None:
    """Without the numbers of processes, so that the same failure has the same words."""
    cause = RayTaskError("LayerShard.__init__", traceback, RuntimeError())  # type: ignore[no-untyped-call]
    found = explained(ActorDiedError.from_task_error(cause), "start of a worker", 60)
    assert isinstance(found, WorkerStartError)
    assert str(found) == f"start of a worker: {raised}, while a worker started"
