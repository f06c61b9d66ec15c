"""Write: the weight files, each as soon as the factors of its matrices are committed."""

from typing import Any

from pipeline.cluster.pool import Task
from pipeline.progress import Stage
from pipeline.stages.output import Output
from pipeline.stages.weight_files import plan_file, plan_parts
from workers.storage.keys import factors_key, recovered_key, recovered_norms_key


class WeightFiles:
    """The weight files of an output, planned from its ranks.

    Their tasks may start while matrices are still cut: the pool works on them as it has room.
    """

    def __init__(self, output: Output) -> None:
        run, found = output.run, output.allocation
        self._output = output
        self._keys = {
            name: recovered_key(output.identity, name)
            if run.config.trains
            else factors_key(run.ids, name, rank, name in found.pruned)
            for name, rank in found.ranks.items()
            if rank is not None
        }
        self._norms: dict[str, str] = {}
        norms = run.store.record(key := recovered_norms_key(output.identity))
        if norms is not None:
            names: Any = norms.facts["names"]
            self._norms = dict.fromkeys(names, key)
        factors, matrices = run.config.factors, run.spec.matrices
        sizes = {matrix.name: found.parameters_of(factors, matrix) for matrix in matrices}
        self._parts = plan_parts(run.spec, sizes)
        self._written = 0
        self._stage: Stage | None = None

    def ready(self) -> list[Task]:
        """Return the tasks of the files that the current rows have completed."""
        output, tasks = self._output, list[Task]()
        for part in self._parts:
            if part.name in output.files or not part.matrices <= output.rows.keys():
                continue
            file = plan_file(output.run.spec, part, output.rows, self._keys, self._norms)
            output.files[part.name] = file
            key = output.weights[part.name]
            if output.run.store.record(key):
                self._count()
                continue
            what = f"write {part.name}"
            tasks.append(
                Task(what, "write_output", (key, file), lambda _: self._count(), later=True)
            )
        return tasks

    def write(self) -> None:
        """Wait for every file that can be written; one with a given-up matrix cannot."""
        progress, pool = self._output.run.progress, self._output.run.pool
        with progress.stage("write", len(self._parts), "files") as stage:
            self._stage = stage
            stage.advance(self._written)
            pool.finish()
            stage.busy = list(pool.seconds.values())
        self._output.files = dict(sorted(self._output.files.items()))

    def _count(self) -> None:
        self._written += 1
        if self._stage is not None:
            self._stage.advance()
