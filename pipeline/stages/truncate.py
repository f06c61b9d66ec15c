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
from workers.storage.spectra import read_spectrum


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
            output.rows[matrix.name] = _cut(output, matrix, record)
    pending = [matrix for matrix in run.spec.matrices if matrix.name not in output.rows]
    run.grow()

    def cut(matrices: Sequence[MatrixSpec], records: Sequence[Record]) -> list[Task]:
        for matrix, record in zip(matrices, records, strict=True):
            output.rows[matrix.name] = _cut(output, matrix, record)
        stage.advance(len(matrices), matrices=matrices)
        return follow()

    with run.progress.stage("truncate", len(pending), "matrices", pending) as stage:
        tasks = [
            Task(
                f"cut {matrix.name}",
                "truncate",
                (matrix, ranks[matrix.name]),
                partial(cut, [matrix]),
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


def _cut(output: Output, matrix: MatrixSpec, record: Record) -> MatrixResult:
    """Return the row of a matrix that was cut. If it lacks neurons, what fell back when its ranks
    were weighed counts as well.
    """
    run, row = output.run, MatrixResult.model_validate(record.facts)
    if not (row.is_pruned and run.config.lowers_ranks):
        return row
    _, facts = read_spectrum(run.store, run.ids, matrix)
    both = dict.fromkeys((*row.fallbacks, *facts.fallbacks))
    return row.model_copy(update={"fallbacks": tuple(both)})


def _dense(output: Output, matrix: MatrixSpec) -> MatrixResult:
    """Return the row of a matrix that stays dense, by choice or because it was given up."""
    run = output.run
    why = output.given_up.get(matrix.name)
    if why or not run.config.lowers_ranks:
        said = (f"kept dense, for it could not be cut: {why}",) if why else ()
        return left_dense(matrix, run.config.needs_gradients, said)
    return kept_dense(run.store, run.ids, matrix)
