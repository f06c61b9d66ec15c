"""A finished run at other ratios: what was asked then, but for the ratio and the output."""

from pipeline.run_directory.status import read_record, read_status
from schemas.errors import ConfigError
from schemas.request.budget import BudgetConfig
from schemas.request.config import RunConfig
from schemas.request.export import ExportConfig
from workers.storage.places import place_of


def at_ratios(request: ExportConfig) -> RunConfig:
    """Return the run that cuts at the ratios of a request with what an earlier run has measured.

    Raises ConfigError if that run has not measured all, or if its ratio has rounds or a checkpoint
    of its own.
    """
    run_dir = place_of(request.checkpoint)
    config = read_record(run_dir).config
    if config.adopt is not None or config.rounds > 1:
        raise ConfigError(
            f"{run_dir}: it trained what was cut before, so it has measured nothing for other "
            "ratios; use `svdllm compress --ratio`"
        )
    status = read_status(run_dir)
    finished = any(status.outputs.values())  # maybe without what could not be factorised
    for stage in () if finished else status.stages:
        if stage.total is not None and stage.done < stage.total:
            raise ConfigError(
                f"{run_dir}: {stage.name} has {stage.done} of {stage.total}; start the command of "
                "this run again to finish it"
            )
    return RunConfig.model_validate(
        {
            **dict(config),
            "ratio": request.ratio,
            "output": request.output,
            "run_dir": run_dir,
            "budget": BudgetConfig(),
        }
    )
