"""Recover: which outputs have factors that are to be trained before their files are written."""

from pipeline.stages.output import Output
from workers.recovery.job import Job, recovery_of


def awaits_recovery(output: Output) -> bool:
    """Whether the factors of an output are to be trained, and are not yet."""
    asked = output.run.config.trains
    return asked and recovery_of(output.run.store, output.identity) is None


def job_of(output: Output) -> Job:
    """Describe the recovery of an output whose matrices are cut."""
    run = output.run
    return Job(
        config=run.config,
        spec=run.spec,
        identity=output.identity,
        factors=run.ids.factors,
        dtype=run.facts.training_dtype,
        ranks=output.allocation.ranks,
        rows=output.rows,
    )
