"""Does unmodified vLLM, loading a compressed checkpoint, write what transformers writes?

    python tests/campaigns/serve_check.py CHECKPOINT --engine build/serve-venv/bin/python

Both continue the same prompts greedily in float32, each in its own process and environment; the
exit status is 1 if any token differs. serve_check.sh installs the engine first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at a temperature of",
    "The three primary colours are",
)
NEW_TOKENS = 24
ENGINE_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Continuation(NamedTuple):
    """One prompt and what follows it, as token ids and as text."""

    prompt: list[int]
    tokens: list[int]
    text: str


def with_transformers(checkpoint: Path) -> list[Continuation]:
    """The continuations by transformers, one prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="float32", trust_remote_code=True, output_loading_info=True
    )
    model, info = loaded
    if any(info.values()):
        raise SystemExit(f"{checkpoint} does not load cleanly: {info}")
    # The checkpoint's own may end early or penalise repetition, which the engine is told not to.
    greedy: Any = GenerationConfig
    model.generation_config = greedy(do_sample=False, max_new_tokens=NEW_TOKENS)
    continuations = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        [ids] = model.generate(**inputs).tolist()
        tokens = ids[length:]
        continuations.append(Continuation(ids[:length], tokens, str(tokenizer.decode(tokens))))
    return continuations


def with_vllm(checkpoint: Path) -> list[Continuation]:
    """The continuations by vLLM, all prompts in one batch."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        model=str(checkpoint),
        trust_remote_code=True,
        model_impl="transformers",
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
    )
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = engine.generate(list(PROMPTS), greedy, use_tqdm=False)
    return [
        Continuation(list(o.prompt_token_ids), list(o.outputs[0].token_ids), o.outputs[0].text)
        for o in outputs
    ]


def in_engine(checkpoint: Path, python: Path) -> list[Continuation]:
    """`with_vllm` in a process of the interpreter that has vLLM."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        subprocess.run(
            [python, __file__, checkpoint, "--answer", answer],
            env={**os.environ, **ENGINE_ENVIRONMENT},
            check=True,
        )
        return [Continuation(*item) for item in json.loads(answer.read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a compressed checkpoint")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--engine", type=Path, help="Python interpreter that has vLLM; compares")
    role.add_argument("--answer", type=Path, help="be the engine, and write its answer here")
    arguments = parser.parse_args()
    if arguments.answer:
        arguments.answer.write_text(json.dumps(with_vllm(arguments.checkpoint)))
        return 0
    expected = with_transformers(arguments.checkpoint)
    served = in_engine(arguments.checkpoint, arguments.engine)
    same = 0
    for prompt, ours, theirs in zip(PROMPTS, expected, served, strict=True):
        same += (ours.prompt, ours.tokens) == (theirs.prompt, theirs.tokens)
        print(f"{prompt}\n    transformers {ours.text!r}\n    vLLM         {theirs.text!r}")
    print(f"{same} of {len(PROMPTS)} continuations of {NEW_TOKENS} tokens are the same")
    return 0 if same == len(PROMPTS) else 1


if __name__ == "__main__":
    sys.exit(main())
