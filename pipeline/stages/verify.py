"""Verify: a worker checks a checkpoint before it is published."""

from pathlib import Path

from pipeline.cluster.pool import Task
from pipeline.stages.output import Output
from pipeline.stages.staging import everywhere
from schemas.errors import VerificationError
from workers.checkpoint.verify import require


def verify(output: Output) -> None:
    """Set `checks`. If one failed, forgets the faulty items and raises VerificationError."""
    run = output.run
    with run.progress.stage("verify", 1, "checkpoint") as stage:
        _look(output)
        stage.advance()
    for check in output.checks:
        if check.passed is None:
            run.progress.warn(
                f"verify: {check.name}: not judged ({check.detail}); it is published all the same, "
                "and `svdllm verify` of the checkpoint tries it again"
            )
    try:
        require(output.checks, output.staging)
    except VerificationError:
        forget(output)
        raise


def _look(output: Output) -> None:
    """Let a worker run the checks. Raises QuarantineError if none can."""
    pool = output.run.pool
    with everywhere(output, weights=False) as place:
        if isinstance(place, Path):
            task = Task("verify", "verify", (str(place),), output.checks.extend)
        else:
            arguments = (place, output.weights)
            task = Task("verify", "verify_stored", arguments, output.checks.extend)
        pool.run([task])
        pool.quarantine.require()


def forget(output: Output) -> None:
    """Forget faulty items, so that they are rewritten: the files that failed checks name, or all of
    them if a failed check names none.
    """
    wrong = [check.files for check in output.checks if check.passed is False]
    if not all(wrong):
        output.discard()
        return
    output.run.ownership.require()
    for name in {name for files in wrong for name in files} & output.weights.keys():
        output.run.store.forget(output.weights[name])
