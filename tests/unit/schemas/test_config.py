"""What a user may ask for, and how nonsense is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.request.config import RunConfig
from schemas.request.groups import AllocationConfig
from schemas.request.methods import METHODS


def config(**fields: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "output": "out", "ratio": 0.2} | fields)


def parts(made: RunConfig) -> dict[str, str]:
    """The three choices of a method."""
    return {
        "truncation": made.truncation,
        "allocation": made.allocation.method,
        "factors": made.factors,
    }


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_presets_truncation_allocation_and_factors(method: str) -> None:
    made = config(method=method)
    expected = METHODS[made.method]
    assert parts(made) == expected


def test_the_default_is_two_sided() -> None:
    made = config()
    assert made.method == "two-sided"
    assert parts(made) == METHODS["two-sided"]


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("two-sided", {"truncation": "input-only"}),
        ("two-sided", {"factors": "plain"}),
        ("svd-llm", {"allocation": {"method": "loss-aware"}}),
        ("svd-llm", {"truncation": "fisher", "factors": "pivoted"}),
        ("svd-llm-v2", {"allocation": {"method": "uniform"}}),
    ],
)
def test_a_field_that_is_given_overrides_the_preset(method: str, fields: dict[str, Any]) -> None:
    made = config(method=method, **fields)
    given = {k: v["method"] if isinstance(v, dict) else v for k, v in fields.items()}
    assert parts(made) == METHODS[made.method] | given


@pytest.mark.parametrize("asked", [{"max_ratio": 0.8}, {"max_ratio": 0.8, "method": "svd-llm-v2"}])
def test_a_bound_of_the_allocation_leaves_its_method(asked: dict[str, Any]) -> None:
    made = config(method="svd-llm-v2", allocation=asked)
    assert made.allocation == AllocationConfig(method="svd-llm-v2", max_ratio=0.8)


def test_a_flag_that_was_not_given_leaves_the_preset() -> None:
    made = config(method="svd-llm", truncation=None, run_dir=None)
    assert made.truncation == "svd-llm"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.2, (0.2,)),
        (0, (0.0,)),
        ("0.2", (0.2,)),
        ("0.2, 0.4", (0.2, 0.4)),
        ([0.2, 0.4], (0.2, 0.4)),
        ((0.4, 0.2), (0.4, 0.2)),
    ],
)
def test_ratios_are_one_or_several(ratio: object, expected: tuple[float, ...]) -> None:
    assert config(ratio=ratio).ratio == expected


def test_ratios_that_would_share_a_folder_are_refused_with_their_values() -> None:
    message = refusal(ratio=[0.201, 0.204])
    assert "0.201, 0.204" in message
    assert "separate runs" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "two-sided"},
        {"method": "svd-llm", "allocation": {"method": "loss-aware"}},
        {"truncation": "input-only"},
    ],
)
def test_gradients_that_are_needed_but_not_asked_for_are_refused(fields: dict[str, str]) -> None:
    message = refusal(calibration={"gradient_samples": 0}, **fields)
    assert "calibration.gradient_samples is 0" in message
    assert "--truncation input-only --allocation uniform" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "svd-llm"},
        {"method": "svd-llm-v2"},
        {"truncation": "input-only", "allocation": {"method": "uniform"}},
    ],
)
def test_without_need_gradients_may_be_off(fields: dict[str, str]) -> None:
    assert not config(calibration={"gradient_samples": 0}, **fields).needs_gradients


@pytest.mark.parametrize(
    ("truncation", "allocation", "needed"),
    [
        ("fisher", "uniform", True),
        ("fisher", "loss-aware", True),
        ("svd-llm", "loss-aware", True),
        ("svd-llm", "uniform", False),
        ("input-only", "svd-llm-v2", False),
    ],
)
def test_gradients_are_needed_for_fisher_and_for_nats(
    truncation: str, allocation: str, needed: bool
) -> None:
    assert (
        config(truncation=truncation, allocation={"method": allocation}).needs_gradients is needed
    )


def test_gradients_in_float16_are_refused_with_a_remedy() -> None:
    numerics = {"dtype": "float16"}
    assert "--dtype bfloat16 or float32" in refusal(numerics=numerics)
    assert config(method="svd-llm", numerics=numerics).numerics.dtype == "float16"


def test_v2_allocation_of_fisher_losses_is_refused_with_a_remedy() -> None:
    message = refusal(method="two-sided", allocation={"method": "svd-llm-v2"})
    assert "svd-llm-v2" in message
    assert "fisher" in message
    assert "--allocation loss-aware" in message


@pytest.mark.parametrize("method", METHODS)
def test_neurons_go_if_losses_are_in_nats_and_that_is_asked_for(method: str) -> None:
    assert config(method=method).prunes is (method in ("two-sided", "neurons", "width"))
    ranks = {"method": "loss-aware-ranks"}
    assert method != "two-sided" or not config(method=method, allocation=ranks).prunes


def test_nothing_but_neurons_needs_a_truncation_that_knows_their_loss() -> None:
    message = refusal(method="neurons", truncation="input-only")
    assert "allocation loss-aware-neurons removes nothing but neurons" in message
    assert "--truncation fisher" in message


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"ratoi": 0.3}, "ratoi"),
        ({"calibration": {"sampels": 3}}, "calibration.sampels"),
        ({"numerics": {"shrink": 0.1}}, "numerics.shrink"),
        ({"cluster": {"gpus": 2}}, "cluster.gpus"),
    ],
)
def test_unknown_keys_are_refused_by_name(fields: dict[str, object], key: str) -> None:
    message = refusal(**fields)
    assert key in message
    assert "Extra inputs are not permitted" in message


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("calibration", "samples", 0),
        ("calibration", "sequence_length", 1),
        ("calibration", "gradient_samples", -1),
        ("calibration", "micro_batch", 0),
        ("calibration", "segments", 0),
        ("numerics", "threads", 0),
        ("numerics", "shrinkage", -0.1),
        ("numerics", "shrinkage", 1.1),
        ("numerics", "input_shrinkage", -0.1),
        ("numerics", "input_shrinkage", 1.1),
        ("numerics", "pivot_bound", 0),
        ("numerics", "pivot_bound", math.inf),
        ("budget", "kl", math.inf),
        ("numerics", "dtype", "int8"),
        ("cluster", "workers", 0),
        ("cluster", "item_timeout_s", 0),
        ("cluster", "device", "tpu"),
    ],
)
def test_values_out_of_range_are_refused_with_field_and_value(
    section: str, field: str, value: object
) -> None:
    message = refusal(**{section: {field: value}})
    assert f"{section}.{field}" in message
    assert f"input_value={value!r}" in message


@pytest.mark.parametrize("method", ["svdllm", "", ["svd-llm"], {"name": "svd-llm"}, 3])
def test_an_unknown_method_is_refused_with_the_known_ones(method: object) -> None:
    known = "'two-sided', 'neurons', 'width', 'svd-llm-v2', 'svd-llm', 'asvd', 'fwsvd' or 'svd'"
    assert known in refusal(method=method)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_senseless_seed_is_refused(seed: float) -> None:
    assert "seed" in refusal(seed=seed)


@pytest.mark.parametrize("missing", ["model", "output", "ratio"])
def test_what_has_no_default_must_be_given(missing: str) -> None:
    said = "Value error, not given; use --ratio" if missing == "ratio" else "Field required"
    assert f"{missing}\n  {said}" in refusal(**{missing: None})


def test_a_configuration_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_comes_back_from_json(method: str) -> None:
    made = config(method=method, ratio=[0.2, 0.4], numerics={"threads": 2})
    assert RunConfig.model_validate_json(made.model_dump_json()) == made


def test_the_run_folder_is_beside_the_output() -> None:
    assert config(output="a/b").run_folder == Path("a/b.run")
    assert config(output="a/b", run_dir="c").run_folder == Path("c")


def test_one_ratio_is_written_to_the_output_itself_and_several_below_it() -> None:
    assert config(ratio=0.2).output_folder(0.2) == Path("out")
    several = config(ratio=[0.2, 0.45])
    assert [several.output_folder(ratio) for ratio in several.ratio] == [
        Path("out/ratio-0.20"),
        Path("out/ratio-0.45"),
    ]


@pytest.mark.parametrize("method", ["asvd", "fwsvd", "svd"])
def test_losses_that_cannot_be_compared_are_not_allocated_by(method: str) -> None:
    for allocation in ("loss-aware", "svd-llm-v2"):
        assert "use --allocation uniform" in refusal(
            method=method, allocation={"method": allocation}
        )


def test_a_budget_stands_for_the_ratio() -> None:
    made = config(ratio=None, budget={"perplexity": "5%"})
    assert made.ratio == ()
    assert made.budget.perplexity == 0.05
    assert made.budget.option == "--max-perplexity-increase 5%"
    assert made.output_folder(0.2) == made.output
    assert RunConfig.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": {"kl": 0.1}}, "leave out --ratio, or the budget"),
        ({"ratio": None, "budget": {"kl": 0.1, "size": "1GB"}}, "a run has one budget"),
        ({"ratio": None, "budget": {"trials": 3}}, "a budget instead: --target-size"),
        (
            {"budget": {"trials": 3, "tolerance": 0.01}},
            "tolerance, trials: of ratios that are meas",
        ),
        ({"ratio": None, "budget": {"size": "1GB", "trials": 3}}, "trials: of ratios that are"),
        ({"ratio": None, "budget": {"perplexity": 5}}, "write it in %"),
        ({"ratio": None, "budget": {"parameters": "5 potatoes"}}, "a number like 5B"),
        ({"ratio": None, "budget": {"kl": 0.1}, "recovery": {"enabled": True}}, "svdllm recover"),
    ],
)
def test_what_a_budget_cannot_be(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(**fields)
