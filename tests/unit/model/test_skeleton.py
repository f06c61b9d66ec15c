"""Which entry of a config.json is the size of some parameters."""

import json
from typing import Any

import pytest
import torch

from tests.tiny_configs import tiny_config
from workers.model.skeleton import resized, skeleton


def config_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tiny_config(kind).to_json_string(use_diff=False))
    return found


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    model = skeleton(config, "config.json", torch.float32)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "part", "entry"),
    [
        ("llama", "", "intermediate_size"),
        ("phi3", "", "intermediate_size"),
        ("gpt2", "", "n_inner"),
        ("opt", "", "ffn_dim"),
        ("gemma3", "text_config", "intermediate_size"),
        ("qwen2_moe", "", "shared_expert_intermediate_size"),
    ],
)
def test_the_entry_is_found_by_trial(kind: str, part: str, entry: str) -> None:
    config, changed = config_of(kind), config_of(kind)
    entries = changed[part] if part else changed
    size = entries[entry]
    entries[entry] = size // 2
    before, after = shapes_of(config), shapes_of(changed)
    others = {name: shape for name, shape in after.items() if shape != before[name]}
    assert others
    assert resized(config, "config.json", {size: size // 2}, others) == changed


@pytest.mark.parametrize(("kind", "entry"), [("gpt2", "n_inner"), ("falcon", "ffn_hidden_size")])
def test_a_size_may_follow_from_others_while_it_is_not_set(kind: str, entry: str) -> None:
    config = {**config_of(kind), entry: None}
    size = 4 * config["hidden_size" if kind == "falcon" else "n_embd"]
    halved = {**config, entry: size // 2}
    before, after = shapes_of(config), shapes_of(halved)
    others = {name: shape for name, shape in after.items() if shape != before[name]}
    assert resized(config, "config.json", {size: size // 2}, others) == halved
    del config[entry]
    assert resized(config, "config.json", {size: size // 2}, others) == halved


def test_two_entries_of_one_size_change_together() -> None:
    config = config_of("qwen2_moe") | {"mlp_only_layers": [0], "decoder_sparse_step": 1}
    config["shared_expert_intermediate_size"] = config["intermediate_size"]
    size = config["intermediate_size"]
    both = dict.fromkeys(("intermediate_size", "shared_expert_intermediate_size"), size // 2)
    before, after = shapes_of(config), shapes_of(config | both)
    others = {name: shape for name, shape in after.items() if shape != before[name]}
    assert resized(config, "config.json", {size: size // 2}, others) == config | both


def test_none_is_found_where_the_size_follows_from_others() -> None:
    config = config_of("bloom")  # four times as wide as hidden states
    name, shape = next((n, s) for n, s in shapes_of(config).items() if "dense_h_to_4h.w" in n)
    halved = {name: (shape[0] // 2, shape[1])}
    assert resized(config, "config.json", {shape[0]: shape[0] // 2}, halved) is None


def test_none_is_found_where_other_parameters_would_change() -> None:
    config = config_of("llama")
    size = config["intermediate_size"]
    [first, *_] = (n for n in shapes_of(config) if n.endswith("gate_proj.weight"))
    halved = {first: (size // 2, config["hidden_size"])}
    assert resized(config, "config.json", {size: size // 2}, halved) is None
