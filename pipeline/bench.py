"""`svdllm bench`: checkpoints and their base as they are served, in one run."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.evaluate import local_folder, require_no_urls
from schemas.errors import ConfigError
from schemas.request.bench import BenchConfig, Workload
from schemas.request.groups import NumericsConfig
from schemas.result.bench import BenchedModel, BenchReport, Served, Timing
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import context_of
from workers.checkpoint.source import on_every_node
from workers.evaluation.perplexity import stored
from workers.process.cores import available_cores
from workers.serving.process import Job, Measured, ModelProcess, measure_alone
from workers.serving.vllm_model import require_vllm


def bench(config: BenchConfig) -> BenchReport:
    """Serve the baseline, if there is one, and the checkpoints; all stay loaded, each in a process
    of its own, and take turns in every round. On a cluster, each is alone on a worker.

    Raises CheckpointError, ConfigError, VerificationError or WorkerError.
    """
    if config.engine == "vllm":
        require_vllm()
    if config.address:
        require_no_urls(config.models, "--address")
        threads = config.threads or NumericsConfig().threads  # what a job has
        config = config.model_copy(update={"threads": threads})
    with contextlib.ExitStack() as stack:
        folders = [local_folder(name, None, stack) for name in config.models]
        for folder in folders:
            _require_room(folder, config.workloads)
        measured = (_on_cluster if config.address else _in_turn)(config, folders)
        models = [
            _benched(config, name, folder, found)
            for name, folder, found in zip(config.models, folders, measured, strict=True)
        ]
    return BenchReport(
        engine=measured[0].loaded.engine,
        device=", ".join(dict.fromkeys(found.loaded.device for found in measured)),
        threads=config.threads or available_cores(),
        dtype=config.dtype,
        compiled=config.compiled,
        in_turn=not config.address,
        models=tuple(models),
    )


def _in_turn(config: BenchConfig, folders: Sequence[Path]) -> list[Measured]:
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(ModelProcess(name, folder, config))
            for name, folder in zip(config.models, folders, strict=True)
        ]
        loaded = [model.load() for model in models]
        timings = [_serve(models, workload, config.rounds) for workload in config.workloads]
        return [
            Measured(
                loaded=loaded[at],
                rounds=tuple(tuple(timing[at] for timing in rounds) for rounds in timings),
                peak_bytes=model.peak_bytes(),
            )
            for at, model in enumerate(models)
        ]


def _on_cluster(config: BenchConfig, folders: Sequence[Path]) -> list[Measured]:
    from pipeline.cluster.jobs import spread  # ray loads only when needed

    jobs = [
        (f"bench of {name}", Job(*on_every_node(name, folder), config))
        for name, folder in zip(config.models, folders, strict=True)
    ]
    return spread(measure_alone, jobs, config.cluster, threads=config.threads or 1)


def _serve(
    models: Sequence[ModelProcess], workload: Workload, rounds: int
) -> list[tuple[Timing, ...]]:
    """Return the timings of every model, by rounds; within one the models take turns.

    Compiling takes two cores a model, so as many as there are cores for are prepared at once.
    """
    with ThreadPoolExecutor(max(1, available_cores() // 2)) as pool:
        list(pool.map(lambda model: model.prepare(workload), models))
    return [tuple(model.measure(workload.in_round(at)) for model in models) for at in range(rounds)]


def _benched(config: BenchConfig, name: str, folder: Path, found: Measured) -> BenchedModel:
    size, dtype = stored(folder)
    return BenchedModel(
        name=name,
        parameters=found.loaded.parameters,
        bytes_on_disk=size,
        stored_dtype=dtype,
        load_s=found.loaded.seconds,
        peak_bytes=found.peak_bytes,
        served=tuple(
            Served(workload=workload, rounds=rounds)
            for workload, rounds in zip(config.workloads, found.rounds, strict=True)
        ),
    )


def _require_room(folder: Path, workloads: Sequence[Workload]) -> None:
    context = context_of(read_config(folder))
    longest = max(workload.prompt_tokens + workload.new_tokens for workload in workloads)
    if context is not None and longest > context:
        raise ConfigError(
            f"--prompt-tokens and --new-tokens: {longest} together, beyond the {context:,} tokens "
            f"that {folder.name} was made for; ask for fewer"
        )
