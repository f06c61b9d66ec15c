"""Adopt: ranks and factors of a finished checkpoint, instead of an allocation and a truncation."""

from collections.abc import Callable
from functools import partial

from pipeline.cluster.pool import Task
from pipeline.stages.output import Output
from schemas.errors import RunError
from schemas.model.spec import MatrixSpec
from schemas.result.output import MatrixResult
from schemas.run.ranks import AllocationResult
from workers.storage.keys import factors_key


def inherit(output: Output) -> None:
    """Set `allocation`, and the row of every matrix, from the checkpoint's description."""
    run = output.run
    if (adopted := run.inputs.adopted) is None:
        raise RunError("the run has no checkpoint to adopt; start it again")
    found = adopted.compression
    rows = {row.name: row for row in found.matrices}
    output.rows = {matrix.name: rows[matrix.name] for matrix in run.spec.matrices}
    output.allocation = AllocationResult(
        ratio=output.ratio,
        ranks={name: row.rank for name, row in output.rows.items()},
        pruned=frozenset(name for name, row in output.rows.items() if row.is_pruned),
        budget=found.targeted_after,
        parameters=found.targeted_after,
        dense_parameters=found.targeted_before,
        nats=found.nats,
        fallbacks=found.fallbacks,
    )
    if before := len(adopted.compression.recoveries):
        times = "once" if before == 1 else f"{before} times"
        run.progress.note(f"{run.config.adopt}: was trained {times} before, and is trained on")


def adopt(output: Output, follow: Callable[[], list[Task]] = list) -> None:
    """Commit the factors of every low-rank matrix; those that are there are not read again.

    `follow` gives the tasks of the next stage, which waits for them.
    """
    run, there = output.run, output.run.there("factors")
    pending = [
        matrix
        for matrix in run.spec.matrices
        if (rank := output.allocation.ranks[name := matrix.name]) is not None
        and factors_key(run.ids, name, rank, output.rows[name].is_pruned) not in there
    ]
    run.grow()
    with run.progress.stage("adopt", len(pending), "matrices", pending) as stage:

        def task(matrix: MatrixSpec, row: MatrixResult) -> Task:
            done = partial(stage.advance, matrices=[matrix])
            what = f"adopt {matrix.name}"
            return Task(what, "adopt", (matrix, row), lambda _: done(), cost=row.parameters)

        tasks = [task(matrix, output.rows[matrix.name]) for matrix in pending]
        run.pool.run([*tasks, *follow()])
        stage.busy = list(run.pool.seconds.values())
