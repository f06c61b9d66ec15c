"""Tiny random models of every kind of causal language model that is tested."""

import inspect
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

KINDS = """
    apertus arcee bailing_hybrid bloom cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
    gpt_neox gpt_oss gptj granite granitemoe granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe internlm3 jamba lfm2 llama llama4_text minicpm3 minimax_m2 ministral
    ministral3 mistral mixtral mpt nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe opt
    persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next seed_oss
    smollm3 stablelm starcoder2 xglm
""".split()  # noqa: SIM905 (one name a line would hide the rest)
TEXT_DEPENDENT = {"deepseek_v4": "input_ids"}  # by the argument that carries the text

# Sizes by the names that families use; a configuration takes those that it knows.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "mamba_num_heads", "mamba_dt_rank"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "q_lora_rank", "mamba_head_dim"), 16),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "sliding_window"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    "linear_num_value_heads": 4,
    "qk_rope_head_dim": 4,
    "rotary_dim": 4,
    "mamba_expand": 2,
    "max_position_embeddings": 64,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Latent attention: these two follow from other sizes.
_LATENT = {"deepseek_v2", "deepseek_v3", "minicpm3"}
_DERIVED = {"head_dim", "num_key_value_heads"}


def tiny_config(kind: str) -> PretrainedConfig:
    """Three layers, 32 wide, of a kind."""
    config_class: Any = CONFIG_MAPPING[kind]
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= {
        name for base in config_class.__mro__ for name in vars(base).get("__annotations__", ())
    }
    known |= set(config_class.attribute_map)
    if kind in _LATENT:
        known -= _DERIVED
    config: PretrainedConfig = config_class(**{k: v for k, v in _SIZES.items() if k in known})
    return config


def causal_class(kind: str) -> Any:
    """The class of its causal language model."""
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def tiny_causal_model(kind: str) -> Any:
    """A model with random weights, always the same, in float32 on the CPU."""
    torch.manual_seed(0)
    return causal_class(kind)._from_config(tiny_config(kind), dtype=torch.float32).eval()
