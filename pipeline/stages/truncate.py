"""The weight files of a checkpoint: each matrix cut at its rank, each file when it is complete."""

from functools import partial

from pipeline.cluster.pool import Task
from pipeline.run import Run
from pipeline.stages.weight_files import plan_file, plan_parts
from schemas.model.spec import MatrixSpec
from schemas.result.output import MatrixResult, OutputFile
from schemas.run.identity import Record
from schemas.run.ranks import AllocationResult
from workers.allocation.budget import cost
from workers.compressor import kept_dense, left_dense
from workers.storage.keys import factors_key


def write_weights(
    run: Run, identity: str, allocation: AllocationResult
) -> tuple[dict[str, MatrixResult], list[OutputFile]]:
    """Cut every matrix, and write each weight file as soon as its factors are there.

    Returns the row of every matrix, in the order of the model, and the files.
    """
    spec, ranks, keys = run.spec, allocation.ranks, _keys(run, allocation)
    results = {
        matrix.name: _dense(run, matrix) for matrix in spec.matrices if ranks[matrix.name] is None
    }
    there = run.there("factors")
    for name, key in keys.items():
        if record := there.get(key):
            results[name] = MatrixResult.model_validate(record.facts)
    parts = plan_parts(
        spec, {m.name: cost(m, run.config.factors, ranks[m.name]) for m in spec.matrices}
    )
    files: dict[str, OutputFile] = {}

    def write(finished: set[str]) -> list[Task]:
        """The files that became complete with the matrices of `finished`."""
        tasks = []
        for part in parts:
            if part.name in files or not part.matrices <= finished:
                continue
            file = files[part.name] = plan_file(spec, part, results, keys)
            key = f"{output_prefix(identity)}/{part.name}"
            if not run.store.record(key):
                tasks.append(
                    Task(
                        f"write {part.name}",
                        "write_output",
                        (key, file),
                        lambda _: stage.advance(),
                    )
                )
        return tasks

    def cut(matrix: MatrixSpec, record: Record) -> list[Task]:
        results[matrix.name] = MatrixResult.model_validate(record.facts)
        stage.advance(matrices=[matrix])
        return write(set(results))

    pending = [matrix for matrix in spec.matrices if matrix.name not in results]
    run.grow()
    count = len(pending) + len(parts)
    with run.progress.stage("truncate", count, "matrices and files", pending) as stage:
        run.pool.run(
            [
                *(
                    Task(
                        f"cut {matrix.name}",
                        "truncate",
                        (matrix, ranks[matrix.name]),
                        partial(cut, matrix),
                        cost=matrix.size,
                        matrices=(matrix.name,),
                    )
                    for matrix in pending
                ),
                *write(set(results)),
            ]
        )
        stage.busy = list(run.pool.seconds.values())
    rows = {matrix.name: results[matrix.name] for matrix in spec.matrices if matrix.name in results}
    return rows, [files[part.name] for part in parts if part.name in files]


def _dense(run: Run, matrix: MatrixSpec) -> MatrixResult:
    """The row of a matrix that stays dense, by choice or because it was given up."""
    if why := run.given_up.get(matrix.name):
        return left_dense(matrix, why, run.config.needs_gradients)
    return kept_dense(run.store, run.ids.bases, matrix)


def output_prefix(identity: str) -> str:
    """Keys of the weight files of an output start so."""
    return f"outputs/{identity}"


def _keys(run: Run, allocation: AllocationResult) -> dict[str, str]:
    return {
        name: factors_key(run.ids.factors, name, rank)
        for name, rank in allocation.ranks.items()
        if rank is not None
    }
