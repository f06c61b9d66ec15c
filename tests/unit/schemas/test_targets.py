"""Which matrices are cut, and which of them share a budget."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from schemas.errors import ConfigError
from schemas.model.spec import ModelSpec
from schemas.request.compression import CompressionConfig
from schemas.request.nightly import NightlyConfig
from schemas.run.context import within_context
from schemas.run.targets import budgets, matches, select
from tests.tiny_configs import tiny_config
from workers.model.inspection import planned


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return planned(json.loads(tiny_config("qwen2_moe").to_json_string()), "config", "F32")


def asked(**fields: Any) -> CompressionConfig:
    return CompressionConfig.model_validate({"ratio": 0.2, **fields})


def chosen(spec: ModelSpec, **targets: Any) -> set[str]:
    return {matrix.name for matrix in select(asked(targets=targets), spec).matrices}


@pytest.mark.parametrize(
    ("pattern", "is_named"),
    {
        "mlp.down_proj": True,
        "down_proj": True,
        "layers.1": True,
        "layers.1.*": True,
        "layers.?.mlp.*_proj": True,
        "down": False,
        "layers.11": False,
        "proj": False,
        "self_attn.*": False,
    }.items(),
)
def test_a_pattern_is_of_whole_parts(pattern: str, is_named: bool) -> None:
    assert matches("layers.1.mlp.down_proj", pattern) is is_named


def test_routers_and_small_matrices_stay(spec: ModelSpec) -> None:
    every = {matrix.path for matrix in spec.matrices}
    assert "mlp.shared_expert_gate" in every
    left = {matrix.path for matrix in select(asked(), spec).matrices}
    assert left == every - {"mlp.shared_expert_gate"}
    routed = planned(json.loads(tiny_config("hunyuan_v1_moe").to_json_string()), "config", "F32")
    assert "mlp.gate.wg" in {matrix.path for matrix in routed.matrices}
    assert not any("gate.wg" in name for name in chosen(routed, min_features=1))


def test_a_pattern_names_the_parts_of_a_linear_layer() -> None:
    fused = planned(json.loads(tiny_config("phi3").to_json_string()), "config", "F32")
    names = {f"layers.1.self_attn.qkv_proj.{part}" for part in range(3)}
    assert chosen(fused, only="layers.1.self_attn.qkv_proj") == names
    assert chosen(fused, only="layers.1.*", ignore=["mlp", "o_proj", "qkv_proj.0"]) == {
        f"layers.1.self_attn.qkv_proj.{part}" for part in (1, 2)
    }
    assert chosen(fused, only="layers.1.self_attn.qkv_proj", min_features=17) == {
        "layers.1.self_attn.qkv_proj.0"
    }


def test_what_is_chosen_and_ignored(spec: ModelSpec) -> None:
    assert chosen(spec, only="v_proj, o_proj", ignore=["layers.1"]) == {
        f"layers.{layer}.self_attn.{name}" for layer in (0, 2) for name in ("v_proj", "o_proj")
    }
    found = chosen(spec, skip_first=1, skip_last=1)
    assert {name.split(".")[1] for name in found} == {"1"}


@pytest.mark.parametrize(
    ("fields", "cut"),
    [
        ({"targets": {"skip_first": 1}}, "2 of them"),
        ({"targets": {"ignore": ["layers.1.mlp.shared_expert.up_proj"]}}, "2 of them"),
        ({"ratio_by": {"layers.0": 0.1}}, "2 and 1 of them|1 and 2 of them"),
    ],
)
def test_mlps_that_keep_one_width_are_cut_together(
    fields: dict[str, Any], cut: str, spec: ModelSpec
) -> None:
    select(asked(**fields, method="neurons"), spec)
    with pytest.raises(ConfigError, match=rf"3 MLPs .* ({cut}) are cut together"):
        select(asked(**fields, method="width"), spec)
    no_mlp = {"targets": {"only": "self_attn"}, "ratio_by": {"q_proj": 0.1}}
    assert not any(
        matrix.neurons for matrix in select(asked(**no_mlp, method="width"), spec).matrices
    )
    whole = select(asked(method="width", ratio_by={"self_attn": 0.1}), spec)
    assert whole.neurons == spec.neurons


@pytest.mark.parametrize(
    "fields",
    [{"targets": {"only": "nothing"}}, {"targets": {"ignore": "w.v"}}, {"ratio_by": {"w": 0.1}}],
)
def test_a_pattern_that_names_nothing_is_refused_with_what_there_is(
    spec: ModelSpec, fields: Mapping[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"names no matrix; .*self_attn\.q_proj.*shared_expert"):
        select(asked(**fields), spec)


def test_to_leave_everything_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="no matrix is left to be cut"):
        select(asked(targets={"skip_first": 3}), spec)


def test_the_head_is_cut_if_it_is_named(spec: ModelSpec) -> None:
    assert spec.head is not None
    assert "lm_head" not in chosen(spec)
    every = chosen(spec, only="*, lm_head", skip_last=1)
    assert every == chosen(spec, skip_last=1) | {"lm_head"}
    assert chosen(spec, only="lm_head") == {"lm_head"}
    with pytest.raises(ConfigError, match="no matrix is left"):
        select(asked(targets={"only": "lm_head", "min_features": 33}), spec)
    with pytest.raises(ConfigError, match=r"'lm_head' names no matrix; .*, after them lm_head"):
        select(asked(ratio_by={"lm_head": 0.5}), spec)


@pytest.mark.parametrize("kind", ["falcon_mamba", "mamba", "mamba2"])
def test_a_head_whose_weight_is_read_at_every_token_is_not_cut(kind: str) -> None:
    config = json.loads(tiny_config(kind).to_json_string()) | {"tie_word_embeddings": False}
    with pytest.raises(ConfigError, match=r"'lm_head' names no matrix; in the layers there are "):
        chosen(planned(config, "config", "F32"), only="*, lm_head")


@pytest.mark.parametrize(
    ("of_spec", "of_config", "why"),
    [
        ({"tied": True}, {}, "it is the embedding, too"),
        ({"dtype": "BF16"}, {}, "it is stored in F32, and the matrices of the layers in BF16"),
        ({}, {"recovery": {"enabled": True}}, "--refine and --recover train factors"),
    ],
)
def test_a_head_that_cannot_be_cut_is_refused_with_the_reason(
    spec: ModelSpec, of_spec: dict[str, Any], of_config: dict[str, Any], why: str
) -> None:
    config = asked(targets={"only": "*, lm_head"}, **of_config)
    with pytest.raises(ConfigError, match=f"lm_head cannot be cut: {why}.*--targets"):
        select(config, spec.model_copy(update=of_spec))


def test_ratios_of_their_own(spec: ModelSpec) -> None:
    config = asked(ratio_by='{"mlp.*": 0.5, "layers.1": 0.1, "k_proj": 0}')
    left = select(config, spec)
    assert not any(matrix.path == "self_attn.k_proj" for matrix in left.matrices)
    found = budgets(config, left.matrices, 0.2)
    names = {ratio: {matrix.name for matrix in group} for ratio, group in found}
    assert names.keys() == {0.5, 0.1, 0.2}
    assert all(".mlp." in name for name in names[0.5])
    assert names[0.1] == {f"layers.1.self_attn.{name}_proj" for name in "qvo"}
    assert sum(map(len, names.values())) == len(left.matrices)


@pytest.mark.parametrize("value", ["{", "[]", '{"a": 1}', '{"a": "x"}'])
def test_ratios_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="ratio_by"):
        asked(ratio_by=value)


def test_windows_fit_the_model(spec: ModelSpec) -> None:
    assert spec.context == 64
    lowered = within_context(asked(), spec)
    assert lowered.calibration.sequence_length == lowered.calibration.gradient_length == 64
    assert lowered.evaluation.sequence_length == lowered.recovery.sequence_length == 64
    with pytest.raises(ConfigError, match="--gradient-length 65 is beyond the 64 tokens"):
        within_context(asked(calibration={"gradient_length": 65}), spec)
    unbounded = spec.model_copy(update={"context": None})
    assert within_context(asked(), unbounded) == asked()


def test_a_night_with_other_targets_is_another_method() -> None:
    def settings(**fields: Any) -> dict[str, object]:
        asked = {"watch": "/runs/training", "output": "/out", "ratio": 0.2, **fields}
        return NightlyConfig.model_validate(asked).method_settings

    some = settings(targets={"only": "mlp.*"})
    one = settings(ratio_by={"mlp.*": 0.5, "down_proj": 0.1})
    other = settings(ratio_by={"down_proj": 0.1, "mlp.*": 0.5})  # the first that names it counts
    assert len({repr(each) for each in (settings(), some, one, other)}) == 4


def test_a_night_with_other_ranks_is_another_method() -> None:
    found = [
        NightlyConfig.model_validate(
            {"watch": "/runs/training", "output": "/out", "ratio": 0.2, "allocation": allocation}
        ).method_settings["allocation"]
        for allocation in ({}, {"rank_multiple": 64})
    ]
    rest = {"method": "loss-aware", "max_ratio": 0.9}
    assert found == [rest | {"rank_multiple": None}, rest | {"rank_multiple": 64}]


def test_a_night_that_trains_is_another_method() -> None:
    night = {"watch": "/runs/training", "output": "/out", "ratio": 0.2}
    plain = NightlyConfig.model_validate(night).method_settings
    trained = NightlyConfig.model_validate(night | {"recovery": {"enabled": True}}).method_settings
    assert not {"refinement", "recovery"} & plain.keys()
    assert trained.keys() - plain.keys() == {"recovery"}
    refined = NightlyConfig.model_validate(night | {"refinement": {"enabled": True}})
    assert refined.method_settings.keys() - plain.keys() == {"refinement", "recovery"}
    again = {"recovery": {"enabled": True}, "rounds": 2}
    assert NightlyConfig.model_validate(night | again).method_settings == trained | {"rounds": 2}
