"""What is refused of a model that is cut into its layers; tests/contract.py has what holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from schemas.errors import CheckpointError
from tests.kinds import TEXT_DEPENDENT, tiny_causal_model
from workers.model.anatomy import describe
from workers.model.carving import layer_list
from workers.model.inspection import inspect, planned
from workers.model.kinds import TESTED, tiny_config
from workers.model.layers import Decoder

CPU = torch.device("cpu")


@pytest.mark.parametrize(("kind", "argument"), TEXT_DEPENDENT.items())
def test_what_depends_on_the_text_is_refused(kind: str, argument: str, tmp_path: Path) -> None:
    tiny_causal_model(kind).save_pretrained(tmp_path)
    carved = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU).part(range(3))
    with pytest.raises(
        CheckpointError, match=f"argument {argument} of layer 0 depends on the text"
    ):
        carved.calls(torch.Size((2, 12)))


def test_a_model_that_does_not_call_its_layers_is_refused() -> None:
    class Idle(LlamaForCausalLM):  # type: ignore[no-untyped-call]
        def forward(self, **_: Any) -> None:
            return None

    with torch.device("meta"):
        config: Any = tiny_config("llama")
        model: Any = Idle(config)
    with pytest.raises(CheckpointError, match="it does not call all its layers"):
        describe(model)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = tiny_causal_model("llama")
    model.model.other = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(CheckpointError, match=r"one list of 3 layers.*model\.layers, model\.other"):
        layer_list(model)


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
