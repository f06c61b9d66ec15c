"""What a plan says of a recovery: more workers share its memory and its time."""

import re
from typing import Any

import pytest

from schemas.errors import ConfigError
from schemas.run.plan import StageCost
from tests.unit.plan.conftest import planned

RECOVER: dict[str, Any] = {"recover": True}


def stage(name: str, flags: dict[str, Any], **machines: Any) -> StageCost:
    plan = planned(name, RECOVER | flags, **machines)
    return next(stage for stage in plan.stages if stage.name == "recover")


def test_without_it_there_is_no_such_stage() -> None:
    assert "recover" not in [stage.name for stage in planned("llama-3-8b").stages]


def test_operations_follow_tokens_and_what_is_kept() -> None:
    tokens = 2**20
    one = stage("llama-3-8b", {"recovery_tokens": tokens})
    assert stage("llama-3-8b", {"recovery_tokens": 2 * tokens}).flops == pytest.approx(
        2 * one.flops, rel=1e-6
    )
    # Base forward 2, student forward twice and backward 4 of what is kept, and three heads.
    matrices, head = 6_979_321_856, 128_256 * 4096
    assert one.flops == pytest.approx(tokens * (matrices * (2 + 8 * 0.8) + 6 * head), rel=1e-3)
    kept = stage(
        "llama-3-8b", {"recovery_tokens": tokens, "settings": ["recovery.checkpointing=0"]}
    )
    assert kept.flops == pytest.approx(tokens * (matrices * (2 + 6 * 0.8) + 6 * head), rel=1e-3)


def test_more_workers_are_faster() -> None:
    seconds = [sum((stage("llama-3-8b", {}, gpus=g).seconds or {}).values()) for g in (4, 8, 16)]
    assert seconds == sorted(seconds, reverse=True)


def test_what_does_not_fit_is_refused_with_how_many_workers_do() -> None:
    with pytest.raises(ConfigError, match="of each of 8 workers") as refused:
        planned("llama-3-70b", RECOVER)
    found = re.search(r"(\d+) workers could hold it", str(refused.value))
    assert found is not None
    enough = int(found[1])
    assert stage("llama-3-70b", {}, gpus=enough).flops > 0
    with pytest.raises(ConfigError, match="could hold it"):
        planned("llama-3-70b", RECOVER, gpus=enough - 1)
