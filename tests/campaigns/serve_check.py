"""Does unmodified vLLM, serving compressed checkpoints, write what transformers writes?

    python tests/campaigns/serve_check.py CHECKPOINT... [--base BASE] --engine build/serve-venv/bin

Every checkpoint is served over HTTP, by the endpoint that OpenAI's clients use, and continues the
same prompts as transformers does, greedily, in float32 by default. The exit status is 1 if any
token differs, or if the engine is to compile (--compiled) and cannot. The table has the new tokens
a second of all prompts at once, and beside them the base's by vLLM's own implementation and by the
one that compressed models use. serve_check.sh installs the engine.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at a temperature of",
    "The three primary colours are",
    "def add(a, b):",
    "To make bread you need",
    "Dear customer, thank you for",
    "In the year 1492,",
)
NEW_TOKENS, TIMED_TOKENS, ROUNDS = 24, 64, 3
PATIENCE_S = 900  # for the engine to load a model
_SETTINGS = "--max-model-len 128 --no-enable-prefix-caching"
_NOT_COMPILED = "does not support it"  # is what the engine says then
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Engine(NamedTuple):
    """The bin of an environment with vLLM, what it computes in, and whether it compiles."""

    bin: Path
    dtype: str
    compiled: bool


class Served(NamedTuple):
    """What an engine wrote after each prompt, as token ids and text, and its tokens a second."""

    tokens: list[list[int]]
    texts: list[str]
    speed: float


def with_transformers(checkpoint: Path, dtype: str) -> list[list[int]]:
    """The new tokens by transformers, one prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, trust_remote_code=True, output_loading_info=True
    )
    model, info = loaded
    if any(info.values()):
        raise SystemExit(f"{checkpoint} does not load cleanly: {info}")
    # The checkpoint's own may end early or penalise repetition, which the engine is told not to.
    greedy: Any = GenerationConfig
    model.generation_config = greedy(do_sample=False, max_new_tokens=NEW_TOKENS)
    found = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        [ids] = model.generate(**inputs).tolist()
        found.append(ids[inputs["input_ids"].shape[1] :])
    return found


def with_vllm(checkpoint: Path, engine: Engine, implementation: str) -> Served:
    """The new tokens by vLLM's server, all prompts in one request."""
    with _server(checkpoint, engine, implementation) as url:
        choices = _complete(url, checkpoint, NEW_TOKENS)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            _complete(url, checkpoint, TIMED_TOKENS)
            seconds.append(time.perf_counter() - start)
    return Served(
        tokens=[choice["token_ids"] for choice in choices],
        texts=[choice["text"] for choice in choices],
        speed=len(PROMPTS) * TIMED_TOKENS / statistics.median(seconds),
    )


@contextlib.contextmanager
def _server(checkpoint: Path, engine: Engine, implementation: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", engine.bin.parent / f"{checkpoint.name}.log"
    # Not `vllm serve`: the command asks for the metadata of a package that vllm-cpu is not named.
    command = [str(engine.bin / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(checkpoint), "--trust-remote-code"]
    command += ["--model-impl", implementation, "--dtype", engine.dtype, *_SETTINGS.split()]
    command += [] if engine.compiled else ["--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w", encoding="utf-8") as output:
        path = f"{engine.bin}{os.pathsep}{os.environ['PATH']}"  # vLLM compiles with what is there
        environment = os.environ | _ENVIRONMENT | {"PATH": path}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        end = time.monotonic() + PATIENCE_S
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"vLLM does not serve {checkpoint}; see {log}")
            time.sleep(1)
        if engine.compiled and _NOT_COMPILED in log.read_text(encoding="utf-8"):
            raise SystemExit(f"vLLM does not compile {checkpoint}; see {log}")
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # of which urllib's own error is one
        return False


def _complete(url: str, model: Path, tokens: int) -> list[dict[str, Any]]:
    body = {"model": str(model), "prompt": PROMPTS, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return sorted(json.load(answer)["choices"], key=lambda choice: int(choice["index"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="+", help="a compressed checkpoint")
    parser.add_argument("--base", type=Path, help="the model they were made from, for its speed")
    parser.add_argument(
        "--engine", type=Path, required=True, help="the bin of an environment with vLLM"
    )
    parser.add_argument("--dtype", default="float32", help="kernels of 4 bits want bfloat16")
    parser.add_argument("--compiled", action="store_true", help="let the engine compile")
    options = parser.parse_args()
    engine = Engine(options.engine, options.dtype, options.compiled)
    table = Table("model", "by", "equal continuations", "new tokens a second")
    bases = [(options.base, "auto"), (options.base, "transformers")] if options.base else []
    for folder, implementation in bases:
        served = with_vllm(folder, engine, implementation)
        table.add_row(folder.name, implementation, "", f"{served.speed:.1f}")
    same = True
    for folder in options.checkpoint:
        expected = with_transformers(folder, options.dtype)
        served = with_vllm(folder, engine, "transformers")
        equal = sum(ours == theirs for ours, theirs in zip(expected, served.tokens, strict=True))
        same &= equal == len(PROMPTS)
        cells = f"{equal} of {len(PROMPTS)}, {NEW_TOKENS} tokens each", f"{served.speed:.1f}"
        table.add_row(folder.name, "transformers", *cells)
        for prompt, text in zip(PROMPTS, served.texts, strict=True):
            print(f"{folder.name}: {prompt}{text!r}", flush=True)
    Console(width=120).print(table)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
