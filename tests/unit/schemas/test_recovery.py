"""The settings of recovery: shares of texts, and how many steps there are."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.request.config import RunConfig
from schemas.request.recovery import RecoveryConfig

REFINE = {"refinement": {"enabled": True}}


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"recovery": {"text": ["a.txt"]}}, r"recovery\.text .*; add --refine or --recover"),
        ({"recovery": {"tokens": 9}}, r"recovery\.tokens .*; add --recover"),
        ({"recovery": {"tokens": 9}} | REFINE, r"recovery\.tokens .*; add --recover"),
        ({"recovery": {"clip": 2, "norms": True}} | REFINE, r"recovery\.clip .*; add --recover"),
        ({"recovery": {"method": "all-factors"}}, r"recovery\.method .*; add --recover"),
        ({"refinement": {"windows": 3}}, "refinement has settings, .*; add --refine"),
    ],
)
def test_settings_of_a_training_that_is_not_asked_for_are_refused(
    asked: dict[str, Any], remedy: str
) -> None:
    common = {"model": "m", "output": "out", "ratio": 0.2}
    with pytest.raises(ValidationError, match=remedy):
        RunConfig.model_validate(common | asked)
    with_both = {name: group | {"enabled": True} for name, group in asked.items()}
    assert RunConfig.model_validate(common | with_both).trains


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"recovery": {"enabled": True, "order": "one-pass"}}, r"recovery\.order is of .*svd-llm"),
        ({"recovery": {"enabled": True, "lora_rank": 4}}, r"recovery\.lora_rank is of .*svd-llm"),
    ],
)
def test_settings_of_another_method_are_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        RunConfig.model_validate({"model": "m", "output": "out", "ratio": 0.2} | asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"recovery": {"text": "a.txt", "norms": True, "held_out": 3}} | REFINE,
        {"recovery": {"sequence_length": 64}},  # lowered for a model of short windows
        {"recovery": {"method": "all-factors", "enabled": False}},
    ],
)
def test_other_settings_are_read_back_as_they_were_written(asked: dict[str, Any]) -> None:
    config = RunConfig.model_validate({"model": "m", "output": "out", "ratio": 0.2} | asked)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "there", "step", "steps"),
    [
        ({}, 1000, 10, 100),  # the text once
        ({}, 50, 2, 25),
        ({}, 100_000, 64, 1562),
        ({"tokens": 64 * 1024}, 1000, 2, 32),
        ({"tokens": 400 * 1024}, 100, 4, 100),  # four times
        ({"tokens": 400 * 1024, "batch": 8}, 100, 8, 50),
        ({"tokens": 10}, 100, 2, 1),
    ],
)
def test_a_hundred_steps_unless_the_batch_is_given(
    settings: dict[str, Any], there: int, step: int, steps: int
) -> None:
    config = RecoveryConfig(**settings)
    assert (config.windows_in_step(there), config.steps(there)) == (step, steps)


def test_the_way_of_svd_llm_is_a_preset() -> None:
    found = RecoveryConfig.model_validate({"method": "svd-llm"})
    assert (found.enabled, found.objective, found.learning_rate) == (True, "tokens", 1e-4)
    assert found.phases == (("up",), ("down",))
    given = {"method": "svd-llm", "objective": "kl", "learning_rate": 5e-5, "order": "one-pass"}
    own = RecoveryConfig.model_validate(given)
    assert (own.objective, own.learning_rate) == ("kl", 5e-5)
    assert own.phases == RecoveryConfig().phases == (("up", "down"),)
    assert (own.rank_of_updates, RecoveryConfig(enabled=True).rank_of_updates) == (8, None)
    with pytest.raises(ValidationError, match="svd-llm"):
        RecoveryConfig.model_validate({"method": ["svd-llm"]})


def test_updates_of_low_rank_are_not_refined_before() -> None:
    asked: dict[str, Any] = {"model": "m", "output": "out", "ratio": 0.2}
    asked |= {"recovery": {"method": "svd-llm"}, "refinement": {"enabled": True}}
    with pytest.raises(ValidationError, match="ask for one of them"):
        RunConfig.model_validate(asked)
    alone = RunConfig.model_validate(asked | {"recovery": {"method": "svd-llm", "enabled": False}})
    assert alone.recovery.phases == (("up", "down"),)


def test_every_round_keeps_the_same_share_of_what_is_left() -> None:
    asked = RunConfig.model_validate(
        {"model": "m", "output": "out", "ratio": 0.784, "rounds": 3, "recovery": {"enabled": True}}
        | {"ratio_by": {"q_proj": 0.271, "k_proj": 0}}
    )
    one, two, three = asked.in_rounds()
    assert [run.ratio for run in (one, two, three)] == [(0.4,), (0.64,), (0.784,)]
    assert one.ratio_by == {"q_proj": 0.1, "k_proj": 0.0}
    assert three.model_copy(update={"adopt": None}) == asked
    assert (one.adopt, two.adopt, three.adopt) == (None, one.output, two.output)
    places = {str(run.output) for run in (one, two)} | {str(run.run_folder) for run in (one, two)}
    assert len(places) == 4
    assert all(place.startswith("out.run/rounds/") for place in places)
    assert all(run.calibrates for run in (one, two, three))
    [alone] = asked.model_copy(update={"rounds": 1}).in_rounds()
    assert alone.ratio == asked.ratio


@pytest.mark.parametrize("fields", [{}, {"recovery": {"enabled": True}, "ratio": (0.2, 0.4)}])
def test_rounds_that_train_nothing_or_several_ratios_are_refused(fields: dict[str, Any]) -> None:
    asked = {"model": "m", "output": "out", "ratio": 0.6, "rounds": 2}
    with pytest.raises(ValidationError, match=r"rounds = 2: .* add --recover"):
        RunConfig.model_validate(asked | fields)


def test_norms_are_not_trained_beside_updates() -> None:
    with pytest.raises(ValidationError, match=r"recovery\.norms trains weights themselves"):
        RecoveryConfig.model_validate({"method": "svd-llm", "norms": True})
    assert RecoveryConfig.model_validate({"enabled": True, "norms": True}).norms


def test_what_is_not_cut_cannot_be_trained() -> None:
    asked = {"model": "m", "output": "o", "refinement": {"enabled": True}}
    with pytest.raises(ValueError, match="ratio 0: nothing is cut"):
        RunConfig.model_validate(asked | {"ratio": (0.2, 0)})
    RunConfig.model_validate(asked | {"ratio": 0, "ratio_by": {"mlp": 0.2}})
