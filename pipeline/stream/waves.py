"""Which waves of layer shards must run, and from where, for the moments that are not there yet.

With as many workers as shards there is one wave, and nothing here leaves memory. With more shards
than workers the rows between two waves lie in the run directory, and a stopped run goes on from
the last boundary that is complete.
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
        """What one wave still has to observe in one stream."""
        layers = self.layers(wave)
        return [tap for tap in self.pending if tap.direction == direction and tap.layer in layers]

    def below(self, wave: int, direction: Pass, carried: Carried = "hidden") -> Boundary:
        """The boundary before the first layer of a wave."""
        identity = self.run.ids.moments(direction)
        return Boundary(self.run.store, identity, self.layers(wave).start, carried)

    def forward(self) -> range:
        """Waves through which the text for the forward moments goes."""
        return self._upward("forward", [w for w in self._all() if self.taps(w, "forward")])

    def backward(self) -> range:
        """Waves through which gradients come back, in the order of the layers."""
        wanted = [w for w in self._all() if self.taps(w, "backward")]
        if not wanted:
            return range(0)
        top = wanted[-1]
        while top < self.last and not self._holds(top + 1, "backward", "gradient"):
            top += 1
        return range(wanted[0], top + 1)

    def carried(self) -> range:
        """Waves that only take the text for the gradients to where those start."""
        absent = [w for w in self.backward() if w and not self._holds(w, "backward", "hidden")]
        return self._upward("backward", [w - 1 for w in absent])

    def _all(self) -> range:
        return range(self.last + 1)

    def _upward(self, direction: Pass, wanted: list[int]) -> range:
        if not wanted:
            return range(0)
        first = wanted[0]
        while first and not self._holds(first, direction, "hidden"):
            first -= 1
        return range(first, wanted[-1] + 1)

    def _holds(self, wave: int, direction: Pass, carried: Carried) -> bool:
        return self.below(wave, direction, carried).holds(self.batches[direction])
