"""Verify: a worker checks a checkpoint before it is published."""

from pathlib import Path

from pipeline.cluster.pool import Task
from pipeline.run import Run
from pipeline.stages.assemble import beside
from pipeline.stages.output import Output
from pipeline.stages.staging import everywhere
from schemas.errors import VerificationError
from schemas.location import Location
from schemas.result.manifest import Check
from schemas.run.identity import fingerprint
from workers.checkpoint.verify import Writes, require, written_in
from workers.evaluation import continuations
from workers.storage.files import file_sha256, sha256_of
from workers.storage.models import read_model
from workers.storage.places import write


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
    """Let a worker run the checks. Raises QuarantineError if none can.

    If the run compares its result with the base, what the base writes is kept in the run directory,
    for other ratios and methods.
    """
    run, base = output.run, None
    writes: Writes = "sample"
    if run.inputs.evaluation is not None:
        base = read_model(_kept(run), Check)
        writes = "dozen" if base else "both"
    with everywhere(output, weights=False) as place:
        arguments = (place, output.weights, writes)
        run.pool.run([Task("verify", "verify", arguments, output.checks.extend)])
        run.pool.quarantine.require()
    written, result = written_in(output.checks)
    if base is not None and result is not None:
        output.checks.append(base)
    elif written is not None:
        write(_kept(run), written.model_dump_json(indent=2).encode())


def _kept(run: Run) -> Location:
    """Return the place of what the base writes, which follows from its files and how it is asked;
    the identity of the forward moments has its weights, and the versions of the libraries.
    """
    folder = run.inputs.folder
    small, asked = sha256_of(folder, beside(folder)), file_sha256(Path(continuations.__file__))
    identity = fingerprint([run.ids.forward, small, asked])
    return run.store.root / f"evaluations/base-{identity}.json"


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
