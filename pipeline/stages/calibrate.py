"""Calibrate: the text through the layer shards, and the moments of every tap."""

from collections.abc import Sequence

from pipeline.cluster.calls import Actor, wait_for
from pipeline.report.notes import FALLBACK
from pipeline.run import Run
from pipeline.stages.factorise import commit
from pipeline.stream.schedule import (
    Batch,
    Sink,
    Source,
    Stream,
    as_it_is,
    drive,
    micro_batches,
    replica_batches,
    stream_backward,
    stream_forward,
)
from pipeline.stream.waves import Waves
from schemas.run.moments import Pass, Tap
from schemas.run.stages import StageName
from workers.model.shard import Purpose
from workers.storage.keys import moment_key


def calibrate(run: Run) -> None:
    """Stream the text through the layer shards, wave by wave, and commit every moment.

    A matrix is factorised as soon as its moments are committed, while its weight is still on its
    worker. What is already committed is not redone.
    """
    there = run.there("moments")
    pending = [tap for tap in run.taps if moment_key(run.ids, tap) not in there]
    if pending:
        Calibration(run, pending).run()
    else:
        run.progress.note("calibrate: all moments are there")


def forget_streams(run: Run) -> None:
    """Discard rows of waves and sums of replicas, once every moment is there: also those that were
    left by a run that was stopped before it discarded them.
    """
    for identity in filter(None, (run.ids.forward, run.ids.backward)):
        run.discard(f"boundaries/{identity}")
        run.discard(f"parts/{identity}")


class Calibration:
    """The waves of one calibration: up for the forward stream, down for the gradients."""

    def __init__(self, run: Run, pending: list[Tap]) -> None:
        self._run = run
        self._batches = _batches(run)
        self._waves = Waves(run, pending, self._batches)
        self._adaptations: set[str] = set()

    def run(self) -> None:
        """Run every wave that is needed, in order."""
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
                self._run.discard(waves.below(wave, "forward").prefix)
            if turns:
                self._backward(wave)
            self._run.pool.each("release")
        for wave in reversed(backward):
            if wave == waves.last and wave in up:
                continue
            self._load(wave, ["backward"])
            self._backward(wave)
            self._run.pool.each("release")

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
                self._source(wave, direction, chain),
                self._sink(wave, direction, chain),
                purpose,
            )
            for chain, batches in self._replicas(wave, direction)
        ]
        name: StageName = "calibrate forward" if purpose == "moments" else "carry"
        self._drive(name, wave, direction, streams)

    def _backward(self, wave: int) -> None:
        waves, streams = self._waves, []
        for chain, batches in self._replicas(wave, "backward"):
            source = self._source(wave, "backward", chain)
            turn: Sink = as_it_is
            sink: Sink = as_it_is
            if wave < waves.last:
                turn = waves.below(wave + 1, "backward", "gradient").instead(chain[-1])
            if wave:
                sink = waves.below(wave, "backward", "gradient").sink(chain[0])
            streams.append(stream_backward(chain, batches, source, turn, sink))
        self._drive("calibrate backward", wave, "backward", streams)
        self._commit(wave, "backward")
        self._run.discard(waves.below(wave, "backward").prefix)
        if wave < waves.last:
            self._run.discard(waves.below(wave + 1, "backward", "gradient").prefix)

    def _drive(self, name: StageName, wave: int, direction: Pass, streams: list[Stream]) -> None:
        run = self._run
        batches = self._batches[direction]
        workers = [worker for chain, _ in self._replicas(wave, direction) for worker in chain]
        with run.progress.stage(name, sum(len(b.tokens) for b in batches), "windows") as stage:
            length = batches[0].tokens.shape[1]
            drive(streams, name, run.timeout, lambda n, _: stage.advance(n // length, n))
            asked = {worker.busy_seconds.remote(): "busy seconds" for worker in workers}
            stage.busy = wait_for(asked, run.timeout)
        self._warn_of_adaptations(workers)

    def _warn_of_adaptations(self, workers: list[Actor]) -> None:
        """Warn once of each deviation from the plan; records of the moments keep it for good."""
        asked = {worker.adaptations.remote(): "adaptations" for worker in workers}
        found = {note for notes in wait_for(asked, self._run.timeout) for note in notes}
        for note in sorted(found - self._adaptations):
            self._run.progress.warn(f"{FALLBACK}{note}")
        self._adaptations |= found

    def _commit(self, wave: int, direction: Pass) -> None:
        run = self._run
        commit(
            run,
            direction,
            self._waves.taps(wave, direction),
            holders=[chain for chain, _ in self._replicas(wave, direction)],
        )
        if all(item.matrices for item in run.pool.quarantine.items.values()):  # all were merged
            run.discard(f"parts/{run.ids.moments(direction)}")

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
            return as_it_is
        return self._waves.below(wave + 1, direction).sink(chain[-1])


def _batches(run: Run) -> dict[Pass, list[Batch]]:
    text = run.config.calibration
    found: dict[Pass, list[Batch]] = {
        "forward": micro_batches(run.inputs.forward, text.micro_batch, text.segments)
    }
    if run.inputs.backward is not None:
        found["backward"] = micro_batches(run.inputs.backward, text.micro_batch, text.segments)
    return found
