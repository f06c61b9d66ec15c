"""Truncate: every matrix cut at its rank, or without some neurons, on all workers."""

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.cluster.pool import Task
from pipeline.stages.output import Output
from schemas.model.spec import MatrixSpec
from schemas.result.output import MatrixResult
from schemas.run.identity import Record
from workers.compressor import kept_dense, left_dense
from workers.storage.keys import factors_key


def truncate(output: Output, follow: Callable[[], list[Task]] = list) -> None:
    """Set the row of every matrix; matrices that are already cut are not cut again.

    `follow` gives the tasks that the rows so far allow; the next stage waits for them.
    """
    run, ranks, pruned = output.run, output.allocation.ranks, output.allocation.pruned
    there = run.there("factors")
    for matrix in run.spec.matrices:
        rank, name = ranks[matrix.name], matrix.name
        if rank is None:
            output.rows[matrix.name] = _dense(output, matrix)
        elif record := there.get(factors_key(run.ids, name, rank, name in pruned)):
            output.rows[matrix.name] = MatrixResult.model_validate(record.facts)
    pending = [matrix for matrix in run.spec.matrices if matrix.name not in output.rows]
    run.grow()

    def cut(matrices: Sequence[MatrixSpec], records: Sequence[Record]) -> list[Task]:
        for matrix, record in zip(matrices, records, strict=True):
            output.rows[matrix.name] = MatrixResult.model_validate(record.facts)
        stage.advance(len(matrices), matrices=matrices)
        return follow()

    def cut_one(matrix: MatrixSpec, record: Record) -> list[Task]:
        return cut([matrix], [record])

    with run.progress.stage("truncate", len(pending), "matrices", pending) as stage:
        tasks = [
            Task(
                f"cut {matrix.name}",
                "truncate",
                (matrix, ranks[matrix.name]),
                partial(cut_one, matrix),
                cost=matrix.size,
                matrices=(matrix.name,),
            )
            for matrix in pending
            if matrix.name not in pruned
        ]
        tasks += [
            Task(
                f"remove neurons of {neurons.name}",
                "prune",
                (neurons, ranks[neurons.name]),
                partial(cut, neurons.matrices),
                cost=neurons.count**3,
                matrices=tuple(matrix.name for matrix in neurons.matrices),
            )
            for neurons in run.spec.neurons
            if any(matrix in pending and matrix.name in pruned for matrix in neurons.matrices)
        ]
        run.pool.run([*tasks, *follow()])
        stage.busy = list(run.pool.seconds.values())


def _dense(output: Output, matrix: MatrixSpec) -> MatrixResult:
    """Return the row of a matrix that stays dense, by choice or because it was given up."""
    run = output.run
    why = output.given_up.get(matrix.name)
    if why or not run.config.lowers_ranks:
        return left_dense(matrix, run.config.needs_gradients, why)
    return kept_dense(run.store, run.ids, matrix)
