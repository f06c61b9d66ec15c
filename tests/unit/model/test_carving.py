"""What is refused of a model that is cut into its layers; tests/contract.py has what holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma4TextConfig, LlamaForCausalLM

from schemas.errors import CheckpointError
from tests.kinds import tiny_causal_model
from tests.tiny_configs import tiny_config
from workers.checkpoint.config_file import read_config
from workers.model.anatomy import describe
from workers.model.carving import layer_list
from workers.model.inspection import inspect, planned
from workers.model.kinds import TESTED
from workers.model.layers import Decoder

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "fields", "argument"),
    [
        ("deepseek_v4", {}, "input_ids"),
        ("gemma4_text", {"hidden_size_per_layer_input": 8}, "per_layer_input"),
    ],
)
def test_what_depends_on_the_text_is_refused(
    kind: str, fields: dict[str, Any], argument: str, tmp_path: Path
) -> None:
    tiny_causal_model(kind, **fields).save_pretrained(tmp_path)
    carved = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU).part(range(3))
    with pytest.raises(
        CheckpointError, match=f"argument {argument} of layer 0 depends on the text"
    ):
        carved.calls(torch.Size((2, 12)))


def test_what_layers_share_beside_hidden_states_is_refused() -> None:
    """The last layers of the small models of gemma4 have no keys of their own."""
    tiny = tiny_config("gemma4_text").to_dict()
    config = Gemma4TextConfig(
        **{name: tiny[name] for name in ("hidden_size", "num_attention_heads", "vocab_size")},
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
    )
    content = json.loads(config.to_json_string(use_diff=False))
    with pytest.raises(
        CheckpointError, match=r"layer 2 reads what self_attn\.k_proj of layer 0 computes"
    ):
        planned(content, "config.json", "F32")


def test_what_a_layer_reads_of_an_indexer_in_an_earlier_one_is_refused() -> None:
    """Two in three layers of GLM-5.2 attend to what the indexer of another one has chosen."""
    fields = {"indexer_types": ["full", "shared", "shared"]}
    config = json.loads(tiny_config("glm_moe_dsa").to_json_string(use_diff=False)) | fields
    why = "layer 1 reads prev_topk_indices, which layer 0 returns beside the hidden states"
    with pytest.raises(CheckpointError, match=f"cannot be cut into layers: {why}"):
        planned(config, "config.json", "F32")


def test_a_model_that_does_not_call_its_layers_is_refused() -> None:
    class Idle(LlamaForCausalLM):  # type: ignore[no-untyped-call]
        def forward(self, **_: Any) -> None:
            return None

    with torch.device("meta"):
        config: Any = tiny_config("llama")
        model: Any = Idle(config)
    with pytest.raises(CheckpointError, match="it does not call all its layers"):
        describe(model)


@torch.no_grad()
def test_where_a_model_is_does_not_depend_on_a_tower_that_is_not_filled(tmp_path: Path) -> None:
    """idefics3 moves the embedded text to where its first parameter is."""
    model = tiny_causal_model("idefics3")
    model.save_pretrained(tmp_path)
    carved = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU).part(range(3))
    tokens = torch.arange(24).reshape(2, 12)
    hidden = carved.embed(tokens)
    for index in range(3):
        hidden = carved.layer(index, hidden)
    assert torch.equal(carved.tail(hidden), model(input_ids=tokens).logits)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = tiny_causal_model("llama")
    model.model.other = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(CheckpointError, match=r"one list of 3 layers.*model\.layers, model\.other"):
        layer_list(model)


def test_an_output_embedding_that_is_named_decoder_is_none() -> None:
    path, layers = layer_list(tiny_causal_model("modernbert-decoder"))
    assert (path, len(layers)) == ("model.layers", 3)


@pytest.mark.parametrize("kind", ["t5", "bart", "bert-japanese", "clip", "whisper"])
def test_what_is_no_decoder_is_refused(kind: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{kind}' is (not supported|an encoder-decoder)"):
        planned({"model_type": kind}, "config.json", "F32")


@pytest.mark.parametrize(
    ("kind", "ends"),
    {
        "llama": {"mlp.down_proj"},
        "cohere": {"self_attn.o_proj", "mlp.down_proj"},  # attention and MLP side by side
        "gemma2": set(),  # normed before it is added
        "gpt2": {"mlp.c_proj"},
        "qwen2_moe": set(),  # multiplied by a gate
    }.items(),
)
def test_the_products_that_are_only_added_are_found(kind: str, ends: set[str]) -> None:
    spec = planned(json.loads(tiny_config(kind).to_json_string()), kind, "F32")
    assert all(set(found) == ends for found in spec.ends)


def test_kinds_are_named_once() -> None:
    assert len(set(TESTED)) == len(TESTED) >= 50


@pytest.mark.slow
def test_a_thousand_layers_are_described() -> None:
    config = json.loads(tiny_config("mpt").to_json_string())
    spec = planned(config | {"n_layers": 1000}, "config.json", "F32")
    assert (spec.layers, len(spec.matrices)) == (1000, 6000)


@pytest.mark.parametrize("extra", ["output_router_logits", "output_hidden_states", "return_dict"])
def test_what_a_configuration_asks_for_beside_logits_is_not_computed(
    extra: str, tmp_path: Path
) -> None:
    tiny_causal_model("mixtral").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {extra: extra != "return_dict"}))
    carved = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU).part(range(3))
    assert carved.tail(torch.zeros(2, 5, 32)).shape == (2, 5, 384)


def test_what_follows_the_layers_must_not_read_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_causal_model("llama").save_pretrained(tmp_path)
    carved = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU).part(range(3))
    forward = LlamaForCausalLM.forward

    def reading(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        output = forward(self, input_ids=input_ids, **named)
        output.logits = output.logits + input_ids[..., None]
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", reading)
    with pytest.raises(CheckpointError, match="what follows the last layer depends on the text"):
        carved.tail(torch.zeros(1, 4, 32))


def test_config_json_does_not_choose_the_code_that_computes(tmp_path: Path) -> None:
    tiny_causal_model("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"attn_implementation": "somebody/kernels"}))
    assert inspect(tmp_path).layers == 3
    assert "attn_implementation" not in read_config(tmp_path)


def test_a_linear_that_a_layer_calls_twice_is_left_as_it_is() -> None:
    """It has no one input whose moment could be taken."""
    config: Any = tiny_config("llama")
    with torch.device("meta"):
        made: Any = LlamaForCausalLM(config)
        model = made.to(torch.bfloat16).eval()
    attention = model.model.layers[1].self_attn
    again = attention.forward

    def twice(*args: Any, **named: Any) -> Any:
        output, *others = again(*args, **named)
        return attention.o_proj(output), *others

    attention.forward = twice
    found = describe(model).linears
    assert "self_attn.o_proj" in [linear.path for linear in found[0]]
    assert "self_attn.o_proj" not in [linear.path for linear in found[1]]
