"""A model as transformers serves it: the times at which its generate() hands out tokens."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import Timing
from workers.model.loading import load_model, parameters_of
from workers.process.cores import available_cores
from workers.process.devices import set_threads
from workers.process.memory import peak_resident_bytes, resident_bytes

_FIRST = Workload(batch=1, prompt_tokens=1, new_tokens=1)


class Loaded(NamedTuple):
    """A model that is ready: seconds until it had answered one token, and what runs it."""

    seconds: float
    parameters: int
    engine: str
    device: str


class ServedModel:
    """One model, with transformers' own loop, greedy, on one device."""

    def __init__(self, folder: Path, config: BenchConfig) -> None:
        self._folder, self._config = folder, config
        self._model: Any = None
        self._cache: StaticCache | None = None
        self._resident = 0  # bytes of libraries, before the model

    def load(self) -> Loaded:
        """Load the model, and let it answer a prompt of one token; raises as `load_model` does."""
        config = self._config
        set_threads(config.threads or available_cores())
        self._resident = resident_bytes()
        start = time.perf_counter()
        self._model = load_model(
            self._folder, config.dtype, config.device, config.trust_remote_code
        )
        # What came with the model may end early or penalise repetition; every run is as long.
        settings: Any = GenerationConfig
        self._model.generation_config = settings(do_sample=False, pad_token_id=0)
        self._run(_FIRST)
        seconds = time.perf_counter() - start
        if config.compiled:
            mode = "reduce-overhead" if self._model.device.type == "cuda" else "default"
            self._model.compile(mode=mode, dynamic=False)
        return Loaded(
            seconds=seconds,
            parameters=parameters_of(self._model),
            engine=f"transformers {transformers.__version__}",
            device=device_name(self._model.device),
        )

    def prepare(self, workload: Workload) -> None:
        """Compile for these shapes, with a cache of their size, if asked to; run it once."""
        if self._config.compiled:
            torch.compiler.reset()
            length = workload.prompt_tokens + workload.new_tokens
            self._cache = StaticCache(self._model.config, max_cache_len=length)
            with torch.compiler.set_stance("force_eager"):
                self._run(workload)  # it places the cache, which a compiled forward cannot
        self._run(workload)

    def measure(self, workload: Workload) -> Timing:
        """Run it by the clock."""
        _, start, first, *later = self._run(workload)
        return Timing(first_token_s=first - start, decode_s=later[-1] - first)

    def peak_bytes(self) -> int:
        """Return the most memory taken since `load` began: of a GPU what torch has reserved, on a
        CPU what this process has taken.
        """
        if self._model.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._model.device)
        return peak_resident_bytes() - self._resident

    def _run(self, workload: Workload) -> list[float]:
        """Return the times in seconds when it began, had the prompts, and had each new token.

        A token counts when it is on the host, so the clock waits for the device.
        """
        if self._cache is not None:
            self._cache.reset()  # type: ignore[no-untyped-call]
        cached = {} if self._cache is None else {"past_key_values": self._cache}
        ids = prompts(workload, self._model.config.get_text_config().vocab_size)
        watch = _Stopwatch()
        self._model.generate(
            ids.to(self._model.device),
            attention_mask=torch.ones_like(ids).to(self._model.device),
            max_new_tokens=workload.new_tokens,
            disable_compile=True,  # the model itself is compiled, for its prompts too
            streamer=watch,
            **cached,
        )
        return watch.times


class _Stopwatch(BaseStreamer):
    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def put(self, value: Tensor) -> None:
        """Note when tokens arrive, the prompts first."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last token has come."""


def prompts(workload: Workload, vocabulary: int) -> Tensor:
    """Return random tokens (batch, prompt), the same for every model of a vocabulary."""
    shape = (workload.batch, workload.prompt_tokens)
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))


def device_name(device: torch.device) -> str:
    """Return what people call a device: the model of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
