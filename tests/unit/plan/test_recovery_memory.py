"""What a plan says that a worker of a recovery holds."""

import re
from typing import Any

import pytest

from pipeline.plan.footprint import Costs
from pipeline.plan.machines import on_cpu
from pipeline.plan.recovery import memory, recovery_memory
from schemas.errors import ConfigError
from schemas.model.spec import TensorSpec
from tests.unit.plan.conftest import Base, planned
from tests.unit.plan.test_recovery import RECOVER, REFINE, SHARED, stage


def test_what_does_not_fit_a_device_is_on_the_host() -> None:
    flags: dict[str, Any] = RECOVER | {"ratio": 0.4}
    small, large = (planned(name, flags).recovery for name in ("llama-3-8b", "llama-3-70b"))
    assert small is not None
    assert large is not None
    assert (small.offload, large.offload) == (False, True)
    assert large.host > 20 * 0.6 * 68e9 / 8 > large.device
    asked = planned("llama-3-8b", flags | {"settings": ["recovery.offload=true"]}).recovery
    assert asked is not None
    assert asked.offload
    assert asked.device < small.device


def test_a_device_holds_a_layer_with_its_gradient_and_the_next_one() -> None:
    asked = RECOVER | {"settings": ["recovery.offload=true", "recovery.micro_batch=1"]}
    found = planned("llama-3-8b", asked).recovery
    assert found is not None
    hidden, vocabulary, matrices = 4096, 128_256, 218_103_808
    outside, layer = 2 * vocabulary * hidden + hidden, matrices + 2 * hidden
    activations = 1024 * (32 * hidden + 2 * (3 * hidden + 2 * 1024 + 2 * 14_336))
    logits = 4 * 128 * vocabulary  # each in float32
    gradients = 6 * matrices  # of what is trained: as it is computed, and in float32
    rest = 2 * (outside + activations) + 5.5 * logits
    assert found.device == int(4 * layer + gradients + rest)


def test_experts_that_stay_have_no_gradients_but_are_gathered() -> None:
    experts, matrices = 32 * 8 * 3 * 4096 * 14_336, 32 * 2 * (4096**2 + 4096 * 1024)
    found = planned("mixtral-8x7b", RECOVER | {"settings": ["recovery.offload=true"]}).recovery
    dense = planned("llama-3-8b", RECOVER | {"settings": ["recovery.offload=true"]}).recovery
    assert found is not None
    assert dense is not None
    assert 4 * experts / 32 < found.device < 10 * experts / 32
    links = [
        (stage(name, SHARED | {"recovery_tokens": 2**20}).seconds or {})["host link"]
        for name in ("mixtral-8x7b", "llama-3-8b")
    ]
    dense_matrices = 32 * 218_103_808
    expected = (experts + 0.8 * matrices) / (0.8 * dense_matrices)
    assert links[0] / links[1] == pytest.approx(expected, rel=1e-3)  # without routers and norms


def test_a_tail_that_is_trained_is_held_beside_those_of_base_and_teacher() -> None:
    norms = {"settings": ["recovery.norms=true"]}
    found = [planned("llama-3-8b", asked).recovery for asked in (REFINE, REFINE | norms)]
    one, two = (memory.device if memory else 0 for memory in found)
    assert two - one == 2 * (2 * 128_256 * 4096 + 4096)


def test_training_holds_no_vision_tower(base: Base) -> None:
    tower = TensorSpec(name="vision", file="a", dtype="BF16", shape=(9, 9), role="passing")
    sees = base.spec.model_copy(update={"tensors": (*base.spec.tensors, tower)})
    config = base.config(recovery={"enabled": True})
    plain, found = (Costs(config, spec, "float32") for spec in (base.spec, sees))
    assert found.parameters == plain.parameters + 81
    assert memory(found, 2, offload=False) == memory(plain, 2, offload=False)


def test_what_does_not_fit_is_refused_with_how_many_workers_do() -> None:
    nodes: dict[str, Any] = {"host_memory": "50GB", "gpus_per_node": 1}
    with pytest.raises(ConfigError, match="of each of 8 workers") as refused:
        planned("llama-3-70b", RECOVER, **nodes)
    found = re.search(r"(\d+) workers could hold it", str(refused.value))
    assert found is not None
    enough = int(found[1])
    assert stage("llama-3-70b", {}, **nodes, gpus=enough).flops > 0
    with pytest.raises(ConfigError, match="could hold it"):
        planned("llama-3-70b", RECOVER, **nodes, gpus=enough - 1)


def test_on_a_cpu_fewer_workers_may_hold_what_more_do_not(base: Base) -> None:
    costs = Costs(base.config(recovery={"enabled": True}), base.spec, "float32")

    def refused(workers: int, memory: int = 4 * 10**9) -> str:
        with pytest.raises(ConfigError, match=f"of each of {workers} workers") as caught:
            recovery_memory(costs, on_cpu("auto", workers, memory))
        return str(caught.value)

    found = re.search(r"; use --workers (\d+), or", refused(8))
    assert found is not None
    enough = int(found[1])
    assert recovery_memory(costs, on_cpu("auto", enough, 4 * 10**9)).least_workers <= enough
    refused(enough + 1)
    assert "set recovery.sequence_length" in refused(8, 10**8)


def test_refinement_holds_two_hidden_states_of_each_token_of_its_windows() -> None:
    few, many = (
        planned("llama-3-8b", REFINE | {"settings": [f"refinement.windows={windows}"]}).recovery
        for windows in (48, 80)
    )
    assert few is not None
    assert many is not None
    assert many.device - few.device == 2 * (80 - 48) // 8 * 1024 * 4096 * 2  # of eight workers
