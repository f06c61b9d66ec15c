"""Which waves of layer shards must run, and from where, to get the missing moments.

With as many workers as shards there is one wave, and nothing here leaves memory. With more shards
than workers, the rows between two waves are kept in the run directory, and a stopped run continues
from the last complete boundary.
"""

from dataclasses import dataclass

from pipeline.run import Run
from pipeline.stream.boundaries import Boundary
from pipeline.stream.schedule import Batch
from schemas.run.moments import Pass, Tap
from workers.storage.keys import Carried


@dataclass(frozen=True)
class Waves:
    """The waves of a plan, and the pending taps and boundaries of each."""

    run: Run
    pending: list[Tap]
    batches: dict[Pass, list[Batch]]

    @property
    def last(self) -> int:
        return len(self.run.plan.waves) - 1

    def layers(self, wave: int) -> range:
        """The decoder layers of one wave."""
        shards = self.run.plan.waves[wave]
        return range(shards[0].start, shards[-1].stop)

    def taps(self, wave: int, direction: Pass) -> list[Tap]:
        """Return the taps that one wave still has to observe in one stream."""
        layers = self.layers(wave)
        return [tap for tap in self.pending if tap.direction == direction and tap.layer in layers]

    def below(self, wave: int, direction: Pass, carried: Carried = "hidden") -> Boundary:
        """Return the boundary before the first layer of a wave."""
        identity = self.run.ids.moments(direction)
        return Boundary(self.run.store, identity, self.layers(wave).start, carried)

    def forward(self) -> range:
        """Return the waves that the text for the forward moments must pass."""
        return self._upward("forward", [w for w in range(self.last + 1) if self.taps(w, "forward")])

    def backward(self) -> range:
        """Return the waves that gradients must pass, in the order of the layers."""
        wanted = [w for w in range(self.last + 1) if self.taps(w, "backward")]
        if not wanted:
            return range(0)
        top = wanted[-1]
        while top < self.last and not self._holds(top + 1, "backward", "gradient"):
            top += 1
        return range(wanted[0], top + 1)

    def carried(self) -> range:
        """Return the waves that only carry the gradients' text to where the gradients start."""
        absent = [w for w in self.backward() if w and not self._holds(w, "backward", "hidden")]
        return self._upward("backward", [w - 1 for w in absent])

    def _upward(self, direction: Pass, wanted: list[int]) -> range:
        if not wanted:
            return range(0)
        first = wanted[0]
        while first and not self._holds(first, direction, "hidden"):
            first -= 1
        return range(first, wanted[-1] + 1)

    def _holds(self, wave: int, direction: Pass, carried: Carried) -> bool:
        return self.below(wave, direction, carried).holds(self.batches[direction])
