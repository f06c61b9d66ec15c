"""Calibrate and factorise: the moments of every tap, then the basis of every matrix."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.cluster import Actor, wait_for
from pipeline.pool import Task
from pipeline.run import Run
from pipeline.stream import (
    Batch,
    Sink,
    Source,
    Stream,
    drive,
    micro_batches,
    replica_batches,
    stream_backward,
    stream_forward,
)
from pipeline.waves import Waves
from schemas.model import MatrixSpec
from schemas.moments import Pass, Tap, forward_tap
from workers.items import basis_key, spectrum_key
from workers.shard import Purpose


def calibrate(run: Run) -> None:
    """Stream the text through the layer shards, wave by wave, and commit every moment.

    The matrices of a wave are factorised as soon as its moments are there, with its weights still
    on the workers. What is there already is not done again.
    """
    pending = [tap for tap in run.taps if not run.has_moment(tap)]
    if not pending:
        run.progress.note("calibrate: all moments are there")
        return
    Calibration(run, pending).run()


def factorise(run: Run, matrices: Iterable[MatrixSpec]) -> None:
    """Commit the bases of `matrices` that are not there yet: all workers, the largest first."""
    pending = [matrix for matrix in matrices if not _factorised(run, matrix)]
    if not pending:
        return
    run.grow()
    with run.progress.stage("factorise", len(pending), "matrices") as stage:
        run.pool.run(
            Task(
                f"factorise {', '.join(matrix.name for matrix in group)}",
                "factorise",
                (group,),
                lambda records: stage.advance(len(records)),
                cost=sum(matrix.small**3 for matrix in group),
                home=run.home(group[0].layer),
            )
            for group in _groups(run, pending)
        )
        stage.busy = list(run.pool.seconds.values())


class Calibration:
    """The waves of one calibration: up for the forward stream, down for the gradients."""

    def __init__(self, run: Run, pending: list[Tap]) -> None:
        self._run = run
        self._batches = _batches(run)
        self._waves = Waves(run, pending, self._batches)

    def run(self) -> None:
        """Every wave that is needed, in order."""
        waves = self._waves
        forward, backward, carried = waves.forward(), waves.backward(), waves.carried()
        up = sorted({*forward, *carried})
        for wave in up:
            turns = wave == waves.last and wave in backward
            self._load(wave, ["forward", "backward"] if turns else ["forward"])
            if wave in carried:
                self._forward(wave, "backward", "output")
            if wave in forward:
                self._forward(wave, "forward", "moments")
                self._commit(wave, "forward")
                self._run.store.discard(waves.below(wave, "forward").prefix)
            if turns:
                self._backward(wave)
            self._close(wave)
        for wave in reversed(backward):
            if wave == waves.last and wave in up:
                continue
            self._load(wave, ["backward"])
            self._backward(wave)
            self._close(wave)
        for identity in filter(None, (self._run.ids.forward, self._run.ids.backward)):
            self._run.store.discard(f"boundaries/{identity}")
            self._run.store.discard(f"parts/{identity}")

    def _load(self, wave: int, directions: Sequence[Pass]) -> None:
        run = self._run
        taps = [tap for direction in directions for tap in self._waves.taps(wave, direction)]
        loads = {
            worker.load.remote(shard, [tap for tap in taps if tap.layer in shard.range]): "load"
            for chain in run.chains
            for worker, shard in zip(chain, run.plan.waves[wave], strict=False)
        }
        with run.progress.stage("load", len(loads), "shards") as stage:
            wait_for(loads, run.timeout, lambda _: stage.advance())

    def _forward(self, wave: int, direction: Pass, purpose: Purpose) -> None:
        streams = [
            stream_forward(
                chain,
                batches,
                purpose,
                source=self._source(wave, direction, chain),
                sink=self._sink(wave, direction, chain),
            )
            for chain, batches in self._replicas(wave, direction)
        ]
        name = "calibrate forward" if purpose == "moments" else "carry"
        self._drive(name, wave, direction, streams)

    def _backward(self, wave: int) -> None:
        waves, streams = self._waves, []
        for chain, batches in self._replicas(wave, "backward"):
            source = self._source(wave, "backward", chain)
            turn: Sink = _as_it_is
            sink: Sink = _as_it_is
            if wave < waves.last:
                above = waves.below(wave + 1, "backward", "gradient").source(chain[-1])
                turn = _instead(above)
            if wave:
                sink = waves.below(wave, "backward", "gradient").sink(chain[0])
            streams.append(stream_backward(chain, batches, source, turn, sink))
        self._drive("calibrate backward", wave, "backward", streams)
        self._commit(wave, "backward")

    def _drive(self, name: str, wave: int, direction: Pass, streams: list[Stream]) -> None:
        run = self._run
        batches = self._batches[direction]
        workers = [worker for chain, _ in self._replicas(wave, direction) for worker in chain]
        with run.progress.stage(name, sum(len(b.tokens) for b in batches), "windows") as stage:
            length = batches[0].tokens.shape[1]
            drive(streams, name, run.timeout, lambda n: stage.advance(n // length, n))
            asked = {worker.busy_seconds.remote(): "busy seconds" for worker in workers}
            stage.busy = wait_for(asked, run.timeout)

    def _commit(self, wave: int, direction: Pass) -> None:
        run, count = self._run, len(self._run.chains)
        taps = self._waves.taps(wave, direction)
        with run.progress.stage(f"commit {direction}", len(taps), "moments") as stage:
            run.pool.run(
                Task(
                    f"commit {direction}",
                    "commit_moments",
                    (direction, replica, count),
                    lambda records: stage.advance(len(records) if count == 1 else 0),
                    home=worker,
                    pinned=True,
                )
                for replica, (chain, _) in enumerate(self._replicas(wave, direction))
                for worker in chain
            )
            if count > 1:
                run.pool.run(
                    Task(
                        f"merge {tap.name}",
                        "merge_moments",
                        ([tap], count),
                        lambda records: stage.advance(len(records)),
                    )
                    for tap in taps
                )

    def _close(self, wave: int) -> None:
        """Factorise what is complete, while the weights are still there, then let them go."""
        run = self._run
        mine = [m for m in run.spec.matrices if m.layer in self._waves.layers(wave)]
        factorise(run, [m for m in mine if run.has_moments(m)])
        run.pool.each("release")

    def _replicas(self, wave: int, direction: Pass) -> list[tuple[list[Actor], list[Batch]]]:
        run = self._run
        parts = replica_batches(
            self._batches[direction], run.config.calibration.segments, len(run.chains)
        )
        shards = len(run.plan.waves[wave])
        return [(chain[:shards], part) for chain, part in zip(run.chains, parts, strict=True)]

    def _source(self, wave: int, direction: Pass, chain: list[Actor]) -> Source:
        if not wave:
            return lambda batch: batch.tokens
        return self._waves.below(wave, direction).source(chain[0])

    def _sink(self, wave: int, direction: Pass, chain: list[Actor]) -> Sink:
        if wave == self._waves.last:
            return _as_it_is
        return self._waves.below(wave + 1, direction).sink(chain[-1])


def _batches(run: Run) -> dict[Pass, list[Batch]]:
    text = run.config.calibration
    found: dict[Pass, list[Batch]] = {
        "forward": micro_batches(run.inputs.forward, text.micro_batch, text.segments)
    }
    if run.inputs.backward is not None:
        found["backward"] = micro_batches(run.inputs.backward, text.micro_batch, text.segments)
    return found


def _as_it_is(batch: Batch, rows: Any) -> Any:
    return rows


def _instead(source: Source) -> Sink:
    """The rows of `source`, whatever leaves the chain."""
    return lambda batch, rows: source(batch)


def _factorised(run: Run, matrix: MatrixSpec) -> bool:
    keys = (spectrum_key(run.ids.bases, matrix.name), basis_key(run.ids.bases, matrix.name))
    return all(run.store.record(key) for key in keys)


def _groups(run: Run, matrices: Sequence[MatrixSpec]) -> list[list[MatrixSpec]]:
    """Matrices that start from the root of one input moment, together; every other one alone."""

    def shared(matrix: MatrixSpec) -> str:
        alone = matrix.side == "output" or run.config.truncation in ("svd-llm", "svd-llm-v2")
        return matrix.name if alone else forward_tap(matrix, run.config.truncation).name

    found: dict[str, list[MatrixSpec]] = {}
    for matrix in matrices:
        found.setdefault(shared(matrix), []).append(matrix)
    return list(found.values())
