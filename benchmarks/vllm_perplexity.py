"""Does unmodified vLLM give the perplexity that transformers gives?

    python -m benchmarks.vllm_perplexity CHECKPOINT... --text TEXT

Both score the same windows, in the dtype that is asked for; a row for every checkpoint. Where a
greedy text soon takes another way (bfloat16, rounded inputs), this still tells a wrong kernel from
rounding. A checkpoint that the engine refuses is a row that says why, and the exit status is 1.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from math import exp
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from workers.checkpoint.own_code import may_run_code
from workers.evaluation.perplexity import perplexity
from workers.model.loading import load_model, load_tokenizer
from workers.text.windows import evaluation_windows, shared_tokens

_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}


def main() -> None:
    """Score every checkpoint by both engines, each in a process of its own."""
    options = _parse()
    table = Table("checkpoint", "transformers", "vLLM")
    failed = False
    for folder in options.checkpoints:
        cells = []
        for score in (_transformers, _vllm):
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                try:
                    cells.append(f"{fresh.submit(score, folder, options).result():.3f}")
                except Exception as error:  # noqa: BLE001 (the row says it)
                    cells.append(f"{type(error).__name__}: {error}")
                    failed = True
        print(folder, *cells, sep="  ", flush=True)
        table.add_row(folder.name, *cells)
    Console(width=120).print(table)
    sys.exit(int(failed))


def _transformers(folder: Path, asked: argparse.Namespace) -> float:
    model = load_model(folder, asked.dtype, "auto", trust_remote_code=False)
    return perplexity(model, _windows(folder, asked)).perplexity


def _vllm(folder: Path, asked: argparse.Namespace) -> float:
    """All windows as prompts, of which the engine tells every token's log-probability."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    vllm: Any = import_module("vllm")
    engine = vllm.LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        trust_remote_code=may_run_code(folder, False),
        dtype=asked.dtype,
        max_model_len=asked.length + 1,
        max_num_seqs=4,
        gpu_memory_utilization=asked.memory,
        enforce_eager=True,
    )
    told = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    losses = []
    for window in _windows(folder, asked).tolist():
        [answer] = engine.generate({"prompt_token_ids": window}, told, use_tqdm=False)
        scored = zip(window[1:], answer.prompt_logprobs[1:], strict=True)
        losses += [-found[token].logprob for token, found in scored]
    return exp(sum(losses) / len(losses))


def _windows(folder: Path, asked: argparse.Namespace) -> Tensor:
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    tokens = shared_tokens(asked.text, {str(folder): tokenizer}, asked.windows * asked.length)
    return evaluation_windows(tokens, asked.length, asked.windows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--memory", type=float, default=0.5, help="Part of a GPU for the engine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
