"""Random Llamas of any size, as checkpoints on disk."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.fresh import in_fresh_process
from pipeline.cli.demo_inputs import fetch_model, write_texts
from schemas.request.config import RunConfig
from schemas.request.groups import CalibrationConfig, ClusterConfig
from workers.model.loading import load_tokenizer

T = TypeVar("T")


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
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(LlamaConfig(**(shape | overrides))).bfloat16().save_pretrained(folder)
    return folder


def save_with_tokenizer(folder: Path, hidden: int, layers: int) -> Path:
    """The same with the tokenizer of the demo model, which is fetched beside `folder`."""
    demo = fetch_model(folder.parent / "SmolLM2-135M-Instruct")
    tokenizer = load_tokenizer(demo, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    return save_random_llama(folder, hidden, layers, vocab_size=len(tokenizer))


def on_random_llama(
    call: Callable[[RunConfig], T],
    folder: Path,
    hidden: int,
    layers: int,
    windows: tuple[int, int],
    **cluster: Any,
) -> T:
    """What `call` returns, in a new interpreter, of the request to compress one below `folder`.

    `windows` are the number and the length of those in each stream.
    """
    model = folder / f"llama-{hidden}-{layers}"
    in_fresh_process(save_with_tokenizer, model, hidden, layers)
    calibration, _ = write_texts(folder / "text")
    samples, length = windows
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        config = RunConfig(
            model=str(model),
            output=Path(scratch) / "compressed",
            ratio=(0.2,),
            calibration=CalibrationConfig(
                text=str(calibration),
                samples=samples,
                sequence_length=length,
                gradient_samples=samples,
                gradient_length=length,
            ),
            cluster=ClusterConfig(**cluster),
        )
        return in_fresh_process(call, config)
