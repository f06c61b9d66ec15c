"""What a plan says of a recovery: more workers share its memory and its time."""

from typing import Any

import pytest

from pipeline.cli.tables.plan import plan_table
from pipeline.plan.footprint import Costs
from schemas.run.plan import StageCost
from tests.tables import shown
from tests.unit.plan.conftest import Base, planned

RECOVER: dict[str, Any] = {"recover": True}
REFINE: dict[str, Any] = {"refine": True}
SHARED = {"settings": ["recovery.batch=8"]}  # by eight workers


def stage(model: str, flags: dict[str, Any], name: str = "recover", **machines: Any) -> StageCost:
    plan = planned(model, RECOVER | flags, **machines)
    return next(stage for stage in plan.stages if stage.name == name)


def test_without_it_there_is_no_such_stage() -> None:
    assert "recover" not in [stage.name for stage in planned("llama-3-8b").stages]


def test_operations_follow_tokens_and_what_is_kept() -> None:
    tokens = 2**20
    one, two = (stage("llama-3-8b", SHARED | {"recovery_tokens": n * tokens}) for n in (1, 2))
    assert two.flops == pytest.approx(2 * one.flops, rel=1e-6)
    # Student forward twice and backward 4 of what is kept, and three heads.
    matrices, head = 6_979_321_856, 128_256 * 4096
    assert one.flops == pytest.approx(tokens * (matrices * 8 * 0.8 + 6 * head), rel=1e-3)
    settings = [*SHARED["settings"], "recovery.checkpointing=0"]
    kept = stage("llama-3-8b", {"recovery_tokens": tokens, "settings": settings})
    assert kept.flops == pytest.approx(tokens * (matrices * 6 * 0.8 + 6 * head), rel=1e-3)


def test_hidden_states_are_compared_without_a_head() -> None:
    kl, hidden = (
        stage("llama-3-8b", {"recovery_tokens": 2**20, "settings": [*SHARED["settings"], asked]})
        for asked in ("recovery.objective=kl", "recovery.objective=hidden")
    )
    assert kl.flops - hidden.flops == pytest.approx(2**20 * 6 * 128_256 * 4096)


def test_workers_without_a_window_of_a_step_make_recovery_no_faster() -> None:
    def recovered(batch: int, micro_batch: int = 4) -> StageCost:
        settings = [f"recovery.batch={batch}", f"recovery.micro_batch={micro_batch}"]
        return stage("llama-3-8b", {"recovery_tokens": 2**20, "settings": settings})

    shared, two, nine = recovered(8), recovered(2), recovered(9, 1)  # of eight workers
    assert two.flops == pytest.approx(4 * shared.flops)
    assert nine.flops == pytest.approx(2 * 113 / 128 * shared.flops)
    links = [(stage.seconds or {})["host link"] for stage in (shared, two, nine)]
    assert links == pytest.approx([links[0] * share for share in (1, 4, 2 * 113 / 128)])


def test_layers_that_are_on_the_host_are_gathered_from_it_also_by_one_worker() -> None:
    def links(gpus: int) -> list[float]:
        settings = [[f"recovery.offload={offload}", "recovery.batch=8"] for offload in (0, 1)]
        machines: dict[str, Any] = {"gpus": gpus, "gpu_memory": "160GB"}
        both = (stage("llama-3-8b", {"settings": asked}, **machines) for asked in settings)
        return [(one.seconds or {}).get("host link", 0.0) for one in both]

    none, all_ = links(1)
    assert none == 0 < all_
    shared, own = links(8)
    assert own == pytest.approx(8 / 7 * shared)


def test_more_workers_are_faster() -> None:
    seconds = [sum((stage("llama-3-8b", {}, gpus=g).seconds or {}).values()) for g in (4, 8, 16)]
    assert seconds == sorted(seconds, reverse=True)


def test_the_base_runs_once_for_all_ratios() -> None:
    tokens = 2**20
    flags: dict[str, Any] = {"recovery_tokens": tokens}
    one, three = (
        stage("llama-3-8b", flags | {"ratio": ratios}, name="teach")
        for ratios in ([0.2], [0.2, 0.4, 0.6])
    )
    assert one == three
    assert one.flops == pytest.approx(2 * (tokens + 8 * 1024) * 6_979_321_856, rel=1e-3)
    assert one.written_bytes == (tokens + 8 * 1024) * 4096 * 2
    plan = planned("llama-3-8b", RECOVER | flags | {"settings": ["recovery.objective=tokens"]})
    assert "teach" not in [stage.name for stage in plan.stages]


def test_updates_of_low_rank_take_the_memory_of_frozen_factors() -> None:
    tokens = 2**20
    flags: dict[str, Any] = {"ratio": 0.4, "recovery_tokens": tokens}
    asked: list[dict[str, Any]] = [RECOVER, {"recovery": "svd-llm"}]
    whole, updates = (planned("llama-3-70b", flags | one).recovery for one in asked)
    assert whole is not None
    assert updates is not None
    assert (whole.offload, updates.offload) == (True, False)
    assert updates.device > 2 * 0.6 * 68e9 / 8  # factors, in bfloat16
    ranks = (
        planned("llama-3-70b", flags | asked[1] | {"settings": [f"recovery.lora_rank={rank}"]})
        for rank in (8, 16)
    )
    low, high = (plan.recovery.device for plan in ranks if plan.recovery is not None)
    # Of a layer: q, o, gate, up, down, and k, v of 1,024 rows, at the rank of the smaller side.
    sides = 2 * 4 * 8192 + 3 * (28_672 + 3 * 8192) + 2 * (8192 + 3 * 1024)
    assert high - low == pytest.approx(20 * 8 * 80 * sides / 8, rel=1e-6)
    matrices, head = 6_979_321_856, 128_256 * 4096
    plan = planned("llama-3-8b", flags | asked[1] | SHARED)
    stages = {stage.name: stage for stage in plan.stages}
    assert "teach" not in stages
    assert stages["recover"].flops == pytest.approx(
        tokens * (matrices * 6 * 0.6 + 4 * head), rel=1e-3
    )


def test_what_is_adopted_is_neither_calibrated_nor_cut() -> None:
    flags: dict[str, Any] = RECOVER | {"ratio": 0.4}
    cut = planned("llama-3-8b", flags)
    plan = planned("llama-3-8b", flags | {"settings": ["adopt=/out/cut"]})
    names = [stage.name for stage in plan.stages]
    assert names == ["inspect", "adopt", "write", "verify", "teach", "recover", "evaluate"]
    same = {stage.name: stage for stage in cut.stages}
    assert [stage for stage in plan.stages if stage.name not in ("adopt", "write")] == [
        same[name] for name in names if name not in ("adopt", "write")
    ]
    assert plan.memory.device == plan.memory.sums == plan.disk.moments == plan.disk.bases == 0
    assert plan.disk.outputs == cut.disk.outputs
    assert plan.seconds is not None
    assert cut.seconds is not None
    assert plan.seconds < cut.seconds


def test_each_window_is_taught_once_however_often_it_is_trained_on(base: Base) -> None:
    config = base.config(recovery={"enabled": True, "tokens": 10 * 2**20, "sequence_length": 64})
    alone = base.config(refinement={"enabled": True}, recovery={"sequence_length": 64})
    known, unknown, refined = (
        Costs(asked, base.spec, "float32", windows).taught_tokens
        for asked, windows in ((config, 5), (config, None), (alone, 5))
    )
    assert (known, unknown, refined) == ((5 + 8) * 64, 10 * 2**20 + 8 * 64, 8 * 64)


def test_a_short_text_is_refined_on_with_the_windows_that_it_has(base: Base) -> None:
    config = base.config(refinement={"enabled": True}, recovery={"sequence_length": 64})
    found = [Costs(config, base.spec, "float32", there) for there in (5, 100, None)]
    assert [costs.refined_windows for costs in found] == [5, 48, 48]
    assert [costs.refined_tokens for costs in found] == [2 * 64 * n for n in (5, 48, 48)]
    recovery = {"enabled": True, "tokens": 7 * 64, "sequence_length": 64}
    config = base.config(refinement={"enabled": True}, recovery=recovery)
    assert Costs(config, base.spec, "float32").refined_windows == 7  # no more are read


def test_training_does_not_go_on_with_fewer_workers_than_can_hold_it() -> None:
    flags: dict[str, Any] = RECOVER | {"ratio": 0.4}
    for model in ("llama-3-8b", "llama-3-70b"):
        found = planned(model, flags).recovery
        assert found is not None
        assert 1 <= found.least_workers <= 8
    large = planned("llama-3-70b", flags).recovery
    assert large is not None
    assert large.least_workers == 7  # 20 bytes of each of 41 G parameters, 125 GB each


def test_two_states_of_what_is_trained_are_on_disk() -> None:
    plans = [planned("llama-3-8b", flags) for flags in ({}, RECOVER, {"recovery": "svd-llm"})]
    none, factors, updates = (plan.disk.training for plan in plans)
    [kept] = plans[1].ratios
    assert none == 0
    assert factors == 2 * 12 * kept.targeted_parameters
    assert 0 < updates < factors / 50
    assert plans[1].disk.run_directory - plans[0].disk.run_directory > factors


def test_trained_factors_are_on_disk_beside_those_that_were_cut() -> None:
    cut, trained = (planned("llama-3-8b", flags).disk for flags in ({}, {"recovery": "svd-llm"}))
    more = trained.run_directory - cut.run_directory
    assert more == trained.training + trained.outputs


def test_refinement_keeps_each_layer_once_and_no_moments() -> None:
    plans = [planned("llama-3-70b", flags | {"ratio": 0.4}) for flags in (REFINE, RECOVER)]
    [kept] = plans[0].ratios
    refine, recover = ({stage.name: stage for stage in plan.stages} for plan in plans)
    assert plans[0].disk.training == 4 * kept.targeted_parameters
    assert refine["recover"].written_bytes == 4 * kept.targeted_parameters
    assert recover["recover"].written_bytes == 10 * 12 * kept.targeted_parameters
    held = [plan.recovery for plan in plans]
    assert held[0] is not None
    assert held[1] is not None
    assert held[0].host < 0.45 * held[1].host  # 8 bytes of each parameter, not 20


def test_workers_without_a_window_of_a_refinement_make_it_no_faster() -> None:
    def refined(batch: int) -> StageCost:
        plan = planned("llama-3-8b", REFINE | {"settings": [f"refinement.batch={batch}"]})
        return next(stage for stage in plan.stages if stage.name == "recover")

    shared, two = refined(8), refined(2)  # of eight workers
    windows, matrices, kept = 48 * 1024, 6_979_321_856, 0.8
    assert two.flops - shared.flops == pytest.approx(
        2 * windows * matrices * 6 * kept * (8 / 2 - 1), rel=1e-3
    )
    links = [(stage.seconds or {})["host link"] for stage in (shared, two)]
    assert links[1] == pytest.approx(4 * links[0])


def test_every_round_takes_time_and_disk() -> None:
    flags: dict[str, Any] = {"ratio": 0.64, "recovery_tokens": 2**20} | RECOVER
    once, rounds = (planned("llama-3-8b", flags | more) for more in ({}, {"rounds": 2}))
    first, last = rounds.rounds
    assert once.rounds == ()
    assert rounds.model_copy(update={"rounds": ()}) == once
    assert (first.ratio, last.ratio) == (0.4, 0.64)
    assert once.seconds is not None
    assert last.seconds == once.seconds
    assert first.seconds is not None
    assert first.seconds > last.seconds  # it trains more parameters
    said = " ".join(shown(plan_table(rounds)).split())
    assert "rounds: 40.00% removed in" in said
    assert "then 64.00% removed in" in said
