"""From the sums on the workers to the bases of their matrices and the order in which neurons are
removed, in one pool of items.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

from pipeline.cluster.calls import Actor
from pipeline.cluster.pool import Task
from pipeline.progress import Stage
from pipeline.run import Run
from schemas.model.spec import MatrixSpec, Neurons
from schemas.request.methods import TRUNCATIONS, Truncation
from schemas.run.identity import Record
from schemas.run.moments import Pass, Tap, forward_tap
from workers.storage.keys import basis_key, neurons_key, spectrum_key


def factorise(run: Run, matrices: Iterable[MatrixSpec]) -> None:
    """Commit the missing bases of `matrices`, on all workers, the largest first."""
    pending = Pending(run, matrices)
    if not pending:
        return
    run.grow()
    with pending.stage() as stage:
        run.pool.run(pending.ready(stage))
        stage.busy = list(run.pool.seconds.values())


def commit(run: Run, direction: Pass, taps: list[Tap], holders: list[list[Actor]]) -> None:
    """Commit the moments of one stream, and factorise every matrix whose moments are then complete.

    `holders` are the workers that hold the sums: for each replica, its shards in order.
    """
    if direction == "forward" and run.config.needs_gradients:
        with run.progress.stage("commit forward", len(taps), "moments") as stage:
            run.pool.run(_commits(run, direction, taps, holders, None, stage))
        return
    layers = {tap.layer for tap in taps}
    pending = Pending(run, [m for m in run.spec.matrices if m.layer in layers])
    run.grow()
    with pending.stage() as stage:
        run.pool.run(_commits(run, direction, taps, holders, pending, stage))
        stage.busy = list(run.pool.seconds.values())


class Pending:
    """Matrices without a basis and neurons without an order, each handed out once, as soon as its
    moments are committed.

    Matrices that were given up are left out. The store is looked up once; then records are counted.
    """

    def __init__(self, run: Run, matrices: Iterable[MatrixSpec]) -> None:
        self._run = run
        there = run.there("bases", "spectra", "neurons").keys()
        asked = [matrix for matrix in matrices if matrix.name not in run.given_up]
        cut = asked if run.config.lowers_ranks else []
        self._left = [matrix for matrix in cut if not _basis(run, matrix) <= there]
        names = {matrix.name for matrix in asked}
        self._neurons = [
            neurons
            for neurons in run.spec.neurons
            if neurons.within(names) and neurons_key(run.ids, neurons.name) not in there
        ]
        self._items = [*self._left, *(neurons.reader for neurons in self._neurons)]
        self._moments = set(run.there("moments"))

    def __bool__(self) -> bool:
        return bool(self._left or self._neurons)

    def stage(self) -> AbstractContextManager[Stage]:
        """Open the stage that makes what is missing: of each matrix, and of each MLP."""
        return self._run.progress.stage("factorise", len(self._items), "items", self._items)

    def ready(self, stage: Stage, committed: Iterable[Record] = ()) -> list[Task]:
        """Return the tasks of the matrices whose moments the new records complete."""
        self._moments |= {record.key for record in committed}
        complete = [m for m in self._left if self._has_moments(m)]
        ordered = [n for n in self._neurons if self._has_moments(n.reader)]
        names = {m.name for m in complete} | {n.name for n in ordered}
        self._left = [m for m in self._left if m.name not in names]
        self._neurons = [n for n in self._neurons if n.name not in names]
        groups = root_groups(self._run.config.truncation, complete)
        return [
            *(_factorisation(self._run, group, stage) for group in groups),
            *(_ordering(self._run, neurons, stage) for neurons in ordered),
        ]

    def _has_moments(self, matrix: MatrixSpec) -> bool:
        return self._run.moments_of(matrix) <= self._moments


def _factorisation(run: Run, group: list[MatrixSpec], stage: Stage) -> Task:
    """Make one item of a group; if it fails, one item per matrix shows which of them does."""
    names = tuple(matrix.name for matrix in group)
    return Task(
        f"factorise {', '.join(names)}",
        "factorise",
        (group,),
        lambda records: stage.advance(len(records), matrices=group),
        cost=sum(matrix.small**3 for matrix in group),
        home=run.home(group[0].layer),
        matrices=names,
        split=lambda: (
            [_factorisation(run, [matrix], stage) for matrix in group] if len(group) > 1 else []
        ),
    )


def _ordering(run: Run, neurons: Neurons, stage: Stage) -> Task:
    return Task(
        f"order the neurons of {neurons.name}",
        "order_neurons",
        (neurons,),
        lambda _: stage.advance(matrices=[neurons.reader]),
        cost=neurons.count**3,
        home=run.home(neurons.reader.layer),
        matrices=tuple(matrix.name for matrix in neurons.matrices),
    )


def _commits(
    run: Run,
    direction: Pass,
    taps: list[Tap],
    holders: list[list[Actor]],
    pending: Pending | None,
    stage: Stage,
) -> Iterable[Task]:
    """Return the commits of all holders; with several replicas, a merge of each shard follows."""
    replicas = len(holders)
    parts: Counter[int] = Counter()

    def follow(records: list[Record]) -> list[Task]:
        if pending is not None:
            return pending.ready(stage, records)
        stage.advance(len(records))
        return []

    def merge(shard: int) -> list[Task]:
        parts[shard] += 1
        if parts[shard] < replicas:
            return []
        mine = [tap for tap in taps if run.home(tap.layer) == holders[0][shard]]
        return [
            Task(
                f"merge moments of layer {layer}",
                "merge_moments",
                ([tap for tap in mine if tap.layer == layer], replicas),
                follow,
            )
            for layer in sorted({tap.layer for tap in mine})
        ]

    return [
        Task(
            f"commit {direction}",
            "commit_moments",
            (direction, replica, replicas),
            follow if replicas == 1 else lambda _, shard=shard: merge(shard),  # type: ignore[misc]
            cost=2**62,  # before any matrix
            home=worker,
            pinned=True,
        )
        for replica, chain in enumerate(holders)
        for shard, worker in enumerate(chain)
    ]


def _basis(run: Run, matrix: MatrixSpec) -> set[str]:
    """Return the keys of a factorised matrix's items."""
    keys = {spectrum_key(run.ids, matrix.name)}
    return keys | {basis_key(run.ids, matrix.name)} if run.config.cluster.keep_bases else keys


def root_groups(truncation: Truncation, matrices: Sequence[MatrixSpec]) -> list[list[MatrixSpec]]:
    """Group the matrices that start from the root of one input moment; any other stays alone."""

    def shared(matrix: MatrixSpec) -> str:
        row = TRUNCATIONS[truncation]
        alone = matrix.side == "output" or row.full_gram or row.scaled
        return matrix.name if alone else forward_tap(matrix, truncation).name

    found: dict[str, list[MatrixSpec]] = {}
    for matrix in matrices:
        found.setdefault(shared(matrix), []).append(matrix)
    return list(found.values())
