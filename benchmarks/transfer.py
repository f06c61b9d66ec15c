"""Time of hidden states from one worker to the next: by torch's own pickle, and as they are sent.

    python -m benchmarks.transfer

One micro-batch, 2,048 tokens of a model 8,192 wide in bf16 (33.6 MB), goes from actor to actor
through Ray's object store on this machine. To send is until the result of the one is there, to
receive until the other has it as a tensor and has read one value of it.
"""

import argparse
from functools import partial
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import interleave
from pipeline.cluster.session import ray_session
from schemas.request.groups import ClusterConfig
from workers.actors.tensors import share_tensors

WAYS = ("pickle", "shared")


@ray.remote
class End:
    """One end of a transfer."""

    def __init__(self, rows: Tensor, shared: bool) -> None:
        self._rows = rows
        if shared:
            share_tensors()

    def give(self) -> Tensor:
        """The micro-batch."""
        return self._rows

    def take(self, rows: Tensor) -> float:
        """A value of the micro-batch."""
        return float(rows.flatten()[-1])


def main() -> None:
    """Send both ways, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rows = torch.randn(1, options.tokens, options.hidden).bfloat16()
    with ray_session(ClusterConfig(workers=4), threads=1):
        ends = {way: _pair(rows, shared=way == "shared") for way in WAYS}
        sent: dict[str, Any] = {}

        def send(way: str) -> None:
            sent[way] = ends[way][0].give.remote()
            ray.wait([sent[way]], fetch_local=False)

        def receive(way: str) -> None:
            ray.get(ends[way][1].take.remote(sent.pop(way)))

        steps = {
            f"{step.__name__} {way}": partial(step, way) for way in WAYS for step in (send, receive)
        }
        timings = interleave(steps, options.rounds)
    table = Table("milliseconds", title=f"{rows.nbytes / 1e6:.1f} MB from actor to actor")
    for heading in (*WAYS, "shared / pickle"):
        table.add_column(heading, justify="right")
    for step in ("send", "receive"):
        pickled, shared = (1000 * timings.seconds(f"{step} {way}") for way in WAYS)
        ratio = timings.ratio(f"{step} shared", f"{step} pickle")
        table.add_row(step, f"{pickled:.1f}", f"{shared:.1f}", f"{ratio:.3f}")
    Console(width=80).print(table)


def _pair(rows: Tensor, shared: bool) -> tuple[Any, Any]:
    end: Any = End
    pair = end.remote(rows, shared), end.remote(rows, shared)
    ray.get([one.take.remote(torch.zeros(1)) for one in pair])  # both are there
    return pair


if __name__ == "__main__":
    main()
