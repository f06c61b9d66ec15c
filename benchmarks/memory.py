"""Peak anonymous memory of driver and workers at two model sizes: the driver's must not grow.

python -m benchmarks.memory --work-dir DIR
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.compress import compress
from pipeline.demo_inputs import fetch_model, write_texts
from schemas.config import CalibrationConfig, ClusterConfig, RunConfig
from schemas.manifest import RunResult
from workers.loading import load_tokenizer

P = ParamSpec("P")
T = TypeVar("T")
_SIZES = {"hidden 256, 4 layers": (256, 4), "hidden 1024, 16 layers": (1024, 16)}


def main() -> None:
    """Build two random Llamas, compress each in a fresh process, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    folder = parser.parse_args().work_dir
    calibration, _ = write_texts(folder / "text")
    table = Table("random Llama", title="Peak anonymous memory, MB")
    for heading in ("parameters", "driver", "workers"):
        table.add_column(heading, justify="right")
    for name, (hidden, layers) in _SIZES.items():
        model = folder / f"llama-{hidden}-{layers}"
        _in_fresh_process(_make_model, model, hidden, layers, folder)
        result = _in_fresh_process(_compress, model, calibration)
        table.add_row(
            name,
            f"{result.outputs[0].compression.parameters_before:,}",
            f"{result.driver_peak_bytes / 1e6:,.0f}",
            ", ".join(f"{peak / 1e6:,.0f}" for peak in result.worker_peak_bytes),
        )
    Console(width=90).print(table)


def _in_fresh_process(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments, **options).result()


def _make_model(folder: Path, hidden: int, layers: int, work_dir: Path) -> None:
    tokenizer = load_tokenizer(fetch_model(work_dir / "tokenizer"), trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _compress(model: Path, calibration: Path) -> RunResult:
    return compress(
        RunConfig(
            model=str(model),
            output=model.with_name(f"{model.name}-compressed"),
            ratio=(0.2,),
            calibration=CalibrationConfig(
                text=str(calibration),
                samples=8,
                sequence_length=256,
                gradient_samples=8,
                gradient_length=128,
            ),
            cluster=ClusterConfig(workers=2),
        )
    )


if __name__ == "__main__":
    main()
