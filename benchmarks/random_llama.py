"""Random Llamas of any size, as checkpoints on disk."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.cli.demo_inputs import fetch_model
from workers.model.loading import load_tokenizer


def save_random_llama(folder: Path, hidden: int, layers: int, **overrides: Any) -> Path:
    """Save one in bf16, with heads of 64, half as many key heads, and a tied embedding."""
    shape: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(shape | overrides))).bfloat16().save_pretrained(folder)
    return folder


def save_with_tokenizer(folder: Path, hidden: int, layers: int, **overrides: Any) -> Path:
    """The same with the tokenizer of the demo model, which is fetched beside `folder`."""
    demo = fetch_model(folder.parent / "SmolLM2-135M-Instruct")
    tokenizer = load_tokenizer(demo, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    return save_random_llama(folder, hidden, layers, vocab_size=len(tokenizer), **overrides)
