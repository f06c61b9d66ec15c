"""Tiny random models of every kind that is tested."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from schemas.request.compression import CompressionConfig
from schemas.request.groups import TargetsConfig
from schemas.run.targets import select
from tests.models import tiny_tokenizer
from tests.tiny_configs import tiny_config
from workers.checkpoint.family import family
from workers.model.architectures import Architecture, describe
from workers.model.inspection import planned

# Kinds that differ from each other: every run of the tests checks them, the others those of
# `make architectures`.
KINDS = """
    apertus arcee bailing_hybrid bloom cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon gemma gemma2 gemma3 gemma3_text glm glm4 glm4_moe
    gpt2 gpt_neox gpt_oss gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe internlm3 jamba lfm2 llama llama4 llama4_text minicpm3 minimax_m2 ministral
    ministral3 mistral mistral3 mixtral mpt nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid
    olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_5_vl qwen2_moe qwen3 qwen3_5 qwen3_5_text
    qwen3_moe qwen3_next qwen3_vl seed_oss smollm3 stablelm starcoder2 xglm
""".split()  # noqa: SIM905 (one name a line would hide the rest)


# The matrices of tiny models are small; a gate of one row is left out, as it would be.
EVERYTHING = CompressionConfig(ratio=(0.2,), targets=TargetsConfig(min_features=2))


def derive(kind: str) -> Architecture:
    """What is cut of a kind, by its tiny model."""
    config = json.loads(tiny_config(kind).to_json_string(use_diff=False))
    return describe(select(EVERYTHING, planned(config, kind, "F32")))


def model_class(kind: str) -> Any:
    """The class of its model with a head."""
    return getattr(transformers, family({"model_type": kind}, kind).model)


@torch.no_grad()
def tiny_causal_model(kind: str, **fields: Any) -> Any:
    """A model with random weights, always the same, in float32 on the CPU; `fields` are of its
    configuration.

    Norms and biases are random, too, so that a test sees a model that forgets them.
    """
    torch.manual_seed(0)
    config = tiny_config(kind)
    for name, value in fields.items():
        setattr(config, name, value)
    model = model_class(kind)._from_config(config, dtype=torch.float32).eval()
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            module.weight.normal_(std=0.2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def save_kind(kind: str, folder: Path) -> Path:
    """The folder, with such a model and a tokenizer in it."""
    tiny_causal_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
