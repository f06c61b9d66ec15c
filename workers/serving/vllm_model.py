"""A model as vLLM serves it: its own offline loop by the clock, with nothing of ours in it."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from schemas.errors import ConfigError, WorkerError
from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import Timing
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import auto_class
from workers.checkpoint.own_code import may_run_code
from workers.model.loading import parameters_of
from workers.serving.generation import Loaded, device_name, prompts

_MEMORY = 0.85  # of a GPU, for all models on it
_TRIES = 3  # at a round that another program disturbs
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is in this process, and ends with it
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm() -> None:
    """Raises ConfigError if vLLM cannot be imported here."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm: vLLM is not installed in this Python; install it there, or use "
            "--engine transformers"
        )


class VllmModel:
    """One model in an engine that decides itself where and how it computes."""

    def __init__(self, folder: Path, config: BenchConfig) -> None:
        self._folder, self._config = folder, config
        self._engine: Any = None
        self._vocabulary = 0
        self._sampling: Any = None

    def load(self) -> Loaded:
        """Load the model, and let it answer a prompt of one token.

        Raises ConfigError if vLLM is not here, CheckpointError for code that may not run.
        """
        require_vllm()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        config = self._config
        trusted = may_run_code(self._folder, config.trust_remote_code)
        vllm: Any = import_module("vllm")
        start = perf_counter()
        self._sampling = vllm.SamplingParams
        at_once = 1 if config.address else len(config.models)
        self._engine = vllm.LLM(
            model=str(self._folder),
            skip_tokenizer_init=True,  # prompts are tokens
            trust_remote_code=trusted,
            dtype=config.dtype,
            max_model_len=max(load.prompt_tokens + load.new_tokens for load in config.workloads),
            max_num_seqs=max(config.batch),
            gpu_memory_utilization=_MEMORY / at_once,
            enforce_eager=not config.compiled,
            enable_prefix_caching=False,  # every round reads its prompts
            seed=0,
        )
        told = AutoConfig.from_pretrained(self._folder, trust_remote_code=trusted)
        self._vocabulary = told.get_text_config(decoder=True).vocab_size
        self._seconds(Workload(batch=1, prompt_tokens=1, new_tokens=1))
        seconds, on_gpu = perf_counter() - start, torch.cuda.is_available()
        auto: Any = getattr(transformers, auto_class(read_config(self._folder)))
        with torch.device("meta"):
            model = auto.from_config(told, trust_remote_code=trusted)
        return Loaded(
            seconds=seconds,
            parameters=parameters_of(model),
            engine=f"vLLM {vllm.__version__}",
            device=device_name(torch.device("cuda" if on_gpu else "cpu")),
        )

    def prepare(self, workload: Workload) -> None:
        """Run it once."""
        self._seconds(workload)

    def measure(self, workload: Workload) -> Timing:
        """Run it by the clock: for its first tokens alone, then for all; decoding is the rest.

        Raises WorkerError if all take no longer than the first ones, three times in a row.
        """
        for _ in range(_TRIES):
            first = self._seconds(workload.model_copy(update={"new_tokens": 1}))
            every = self._seconds(workload)
            if every > first:
                return Timing(first_token_s=first, decode_s=every - first)
        raise WorkerError(
            f"{self._folder}: {workload.new_tokens} new tokens took no longer than the first one; "
            "ask for more --new-tokens"
        )

    def peak_bytes(self) -> None:
        """Return nothing: the engine takes all memory that it may."""

    def _seconds(self, workload: Workload) -> float:
        ids = prompts(workload, self._vocabulary).tolist()
        greedy = self._sampling(
            temperature=0.0, max_tokens=workload.new_tokens, ignore_eos=True, detokenize=False
        )
        start = perf_counter()
        self._engine.generate([{"prompt_token_ids": row} for row in ids], greedy, use_tqdm=False)
        return perf_counter() - start
