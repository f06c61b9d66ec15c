"""Rows that pass from one wave of shards to the next through the run directory."""

from dataclasses import dataclass

from pipeline.cluster.calls import Actor
from pipeline.stream.schedule import Batch, Sink, Source
from workers.storage.keys import Carried, boundary_key, boundary_prefix
from workers.storage.store import Store


@dataclass(frozen=True)
class Boundary:
    """Hidden states before decoder layer `layer`, or gradients: one item per micro-batch."""

    store: Store
    identity: str
    layer: int
    carried: Carried = "hidden"

    @property
    def prefix(self) -> str:
        return boundary_prefix(self.identity, self.layer, self.carried)

    def key(self, batch: Batch) -> str:
        return boundary_key(self.identity, self.layer, self.carried, batch.step.first_sequence)

    def holds(self, batches: list[Batch]) -> bool:
        """Whether every micro-batch is stored."""
        return not self.missing(batches)

    def missing(self, batches: list[Batch]) -> list[Batch]:
        """Return the micro-batches that are not stored."""
        there = {record.key for record in self.store.records(self.prefix)}
        return [batch for batch in batches if self.key(batch) not in there]

    def source(self, shard: Actor) -> Source:
        """Return a source that `shard`, which the rows enter, reads."""
        return lambda batch: shard.read.remote(self.key(batch))

    def instead(self, shard: Actor) -> Sink:
        """Return a sink that gives these rows, which `shard` reads once it has those that leave it,
        in place of them: so if they fail, that is what is told.
        """
        return lambda batch, rows: shard.read.remote(self.key(batch), rows)

    def sink(self, shard: Actor) -> Sink:
        """Return a sink that `shard`, which the rows leave, writes."""

        return lambda batch, rows: shard.write.remote(self.key(batch), rows)
