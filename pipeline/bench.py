"""`svdllm bench`: a checkpoint and its base as they are served, in turn, in one run."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluate import local_folder
from schemas.errors import ConfigError
from schemas.request.bench import BenchConfig, Workload
from schemas.result.bench import BenchedModel, BenchReport, Served, Timing
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import context_of
from workers.evaluation.perplexity import stored
from workers.process.cores import available_cores
from workers.serving.process import ModelProcess


def bench(config: BenchConfig) -> BenchReport:
    """Serve the baseline, if there is one, and the checkpoint; both stay loaded, each in a process
    of its own, and take turns in every round.

    Raises CheckpointError, ConfigError, VerificationError or WorkerError.
    """
    names = [name for name in (config.baseline, config.checkpoint) if name is not None]
    with contextlib.ExitStack() as stack:
        folders = [local_folder(name, stack) for name in names]
        for folder in folders:
            _require_room(folder, config.workloads)
        models = [
            stack.enter_context(ModelProcess(name, folder, config))
            for name, folder in zip(names, folders, strict=True)
        ]
        loaded = [model.load() for model in models]
        timings = [_serve(models, workload, config.rounds) for workload in config.workloads]
        benched = []
        for at, (name, folder) in enumerate(zip(names, folders, strict=True)):
            size, dtype = stored(folder)
            benched.append(
                BenchedModel(
                    name=name,
                    parameters=loaded[at].parameters,
                    bytes_on_disk=size,
                    stored_dtype=dtype,
                    load_s=loaded[at].seconds,
                    peak_bytes=models[at].peak_bytes(),
                    served=tuple(
                        Served(workload=workload, rounds=tuple(timing[at] for timing in rounds))
                        for workload, rounds in zip(config.workloads, timings, strict=True)
                    ),
                )
            )
    return BenchReport(
        engine=loaded[0].engine,
        device=loaded[0].device,
        threads=config.threads or available_cores(),
        dtype=config.dtype,
        compiled=config.compiled,
        models=tuple(benched),
    )


def _serve(
    models: Sequence[ModelProcess], workload: Workload, rounds: int
) -> list[tuple[Timing, ...]]:
    """Return the timings of every model, by rounds; within one the models take turns."""
    for model in models:
        model.prepare(workload)
    return [tuple(model.measure(workload) for model in models) for _ in range(rounds)]


def _require_room(folder: Path, workloads: Sequence[Workload]) -> None:
    context = context_of(read_config(folder))
    longest = max(workload.prompt_tokens + workload.new_tokens for workload in workloads)
    if context is not None and longest > context:
        raise ConfigError(
            f"--prompt-tokens and --new-tokens: {longest} together, beyond the {context:,} tokens "
            f"that {folder.name} was made for; ask for fewer"
        )
