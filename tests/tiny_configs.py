"""The configurations of tiny models of every kind that is tested."""

import inspect
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

# Sizes by the names that families use; a configuration takes those that it knows.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "mamba_num_heads", "mamba_n_heads", "mamba_dt_rank"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "moe_shared_expert_intermediate_size": 16,
    **dict.fromkeys(("shared_intermediate_size", "q_lora_rank", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_d_head", "global_head_dim"), 16),
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
    "vocab_size": 384,  # as many as the tests' tokenizer has
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Of vision towers, and of the tokens that stand for images.
    **dict.fromkeys(("depth", "patch_size"), 4),
    **dict.fromkeys(("num_heads", "temporal_patch_size", "spatial_merge_size"), 2),
    **dict.fromkeys(("image_size", "out_hidden_size", "vision_output_dim"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 32),
    **dict.fromkeys(("image_token_id", "image_token_index"), 127),
    "num_position_embeddings": 64,
    "mm_tokens_per_image": 4,
    "video_token_id": 126,
    "vision_start_token_id": 125,
    "vision_end_token_id": 124,
}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
_SPECIAL: dict[str, dict[str, Any]] = {
    # So that three layers have attention, too.
    "bailing_hybrid": {"layer_group_size": 2, "head_dim": 8},  # of its linear attention
    "bamba": {"attn_layer_indices": [1]},
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_5_text": {"full_attention_interval": 2},
    "qwen3_5_moe_text": {"full_attention_interval": 2},
    "qwen3_next": {"full_attention_interval": 2},
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # as the larger models of this kind
    # Inner layers are as wide as their heads together.
    "falcon_h1": {"mamba_d_ssm": 64, "ssm_multipliers": [0.5, 1.5, 0.75, 1.25, 2.0]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8},
    "gpt_oss": {"intermediate_size": 64},  # a multiple of what MXFP4 scales together
    "glm4v_text": _SECTIONS,
    "paddleocr_vl_text": _SECTIONS,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    # Layers of vision towers, by number.
    "qwen2_5_vl_vision": {"fullatt_block_indexes": [0], "window_size": 16},
    "qwen3_vl_vision": {"deepstack_visual_indexes": [0, 1, 2]},
}
# Latent attention: these two follow from other sizes.
_LATENT = {
    *("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32"),
    *("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "mistral4"),
}
_DERIVED = {"head_dim", "num_key_value_heads"}


def tiny_config(kind: str) -> PretrainedConfig:
    """Return the configuration of a model of a kind with three layers, 32 wide."""
    return _tiny(CONFIG_MAPPING[kind])


def _tiny(config_class: Any) -> PretrainedConfig:
    kind = config_class.model_type
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= {
        name for base in config_class.__mro__ for name in vars(base).get("__annotations__", ())
    }
    known |= set(config_class.attribute_map)
    if kind in _LATENT:
        known -= _DERIVED
    sizes: dict[str, Any] = {k: v for k, v in _SIZES.items() if k in known}
    for name, part in config_class.sub_configs.items():
        part_class = type(getattr(config_class(), name)) if part is AutoConfig else part
        sizes[name] = _tiny(part_class).to_dict()
    config: PretrainedConfig = config_class(**sizes | _SPECIAL.get(kind, {}))
    return config
