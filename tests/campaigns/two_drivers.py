"""Two drivers at once: in one run directory, and with run directories of their own for one output.

    python -m tests.campaigns.two_drivers --repetitions 10

The second starts at a random moment of the first. In one run directory one of them ends with 0 and
the other is refused with code 3, or finds the checkpoint there. With directories of their own there
is exactly one checkpoint: the slower driver of the same request finds it there, one of another
ratio is refused. Whatever is published is verified (`svdllm verify`) and has the weights of a run
that was alone. Exits with 1 if something else happened.
"""

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from schemas.request.config import RunConfig
from tests.campaigns.nodes import Nodes
from tests.campaigns.small_model import inputs, request
from tests.documents import ROOT
from tests.integration.processes import Command
from tests.integration.support import flags, weight_sums

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")

# How a driver may end: its exit code, and what it says then.
_ENDS = {
    "written": (0, "written and verified"),
    "found it there": (0, "already there"),
    "refused: the run directory is taken": (3, "is at work in this folder"),
    "refused: another checkpoint is there": (2, "holds a checkpoint of another model"),
}
_LONGEST_S = 1800.0


class Pair(NamedTuple):
    """How two drivers ended, and the weights that are published."""

    ends: tuple[str, str]
    output: Path


class Drivers:
    """Starts pairs of drivers on one cluster."""

    def __init__(self, address: str, alone: RunConfig, draw: random.Random) -> None:
        self._address, self._alone, self._draw = address, alone, draw
        start = time.monotonic()
        ended = self._end(self._start(alone))
        if ended != "written":
            raise SystemExit(f"the run that is alone: {ended}")
        self._usual = time.monotonic() - start
        self.sums = weight_sums(Path(str(alone.output)))

    def same_run(self, folder: Path) -> Pair:
        """Both with one run directory."""
        config = self._config(folder, "run")
        return self._pair(config, config)

    def same_output(self, folder: Path) -> Pair:
        """The same request, in directories of their own."""
        one, other = (self._config(folder, name) for name in ("one", "other"))
        return self._pair(one, other)

    def other_ratio(self, folder: Path) -> Pair:
        """Two ratios for one output, in directories of their own."""
        one = self._config(folder, "one")
        return self._pair(one, self._config(folder, "other", (0.4,)))

    def verified(self, output: Path) -> bool:
        """Whether what is published is whole, in the eyes of the command that says so."""
        command = Command(["verify", str(output)], ROOT)
        try:
            return command.wait(_LONGEST_S) == 0
        finally:
            command.close()

    def _config(self, folder: Path, run: str, ratio: tuple[float, ...] = ()) -> RunConfig:
        places = {"output": folder / "out", "run_dir": folder / run}
        return self._alone.model_copy(update={**places, "ratio": ratio or self._alone.ratio})

    def _pair(self, one: RunConfig, other: RunConfig) -> Pair:
        with ExitStack() as stack:
            first = self._start(one)
            stack.callback(first.close)
            time.sleep(self._draw.uniform(0, self._usual))
            second = self._start(other)
            stack.callback(second.close)
            return Pair((self._end(first), self._end(second)), Path(str(one.output)))

    def _start(self, config: RunConfig) -> Command:
        return Command(flags(config), ROOT, {"RAY_ADDRESS": self._address})

    def _end(self, command: Command) -> str:
        code = command.wait(_LONGEST_S)
        for end, (expected, said) in _ENDS.items():
            if code == expected and said in command.log:
                return end
        return f"exit code {code}:\n{command.log}"


def main() -> None:
    """Every kind of pair, so many times; the table."""
    options = _parse()
    model, text = options.model, options.calibration
    if model is None or text is None:
        model, text = inputs(options.work_dir, 1)
    folder = (options.work_dir / f"two-drivers-{os.getpid()}").absolute()
    with ExitStack() as stack:
        address = options.address
        if address is None:
            nodes = Nodes(2)
            stack.callback(nodes.close)
            address = nodes.address
        config = request(model.absolute(), text.absolute(), folder / "alone", workers=1)
        drivers = Drivers(address, config, random.Random(options.seed))
        wrong = _compare(drivers, folder, options.kind or list(_KINDS), options.repetitions)
    shutil.rmtree(folder)
    sys.exit(int(wrong > 0))


_KINDS: dict[str, Callable[[Drivers, Path], Pair]] = {
    "one run directory": Drivers.same_run,
    "one output": Drivers.same_output,
    "one output, two ratios": Drivers.other_ratio,
}


def _compare(drivers: Drivers, folder: Path, kinds: list[str], repetitions: int) -> int:
    """Print the table; in how many pairs something else happened than should."""
    table = Table("two drivers with", "how they ended", title="Two drivers at once")
    for heading in ("pairs", "verified, the same bytes"):
        table.add_column(heading, justify="right")
    wrong = 0
    for kind in kinds:
        ends: Counter[str] = Counter()
        good = 0
        for number in range(repetitions):
            pair = _KINDS[kind](drivers, folder / f"{kind} {number}")
            ends["; ".join(sorted(pair.ends))] += 1
            good += _as_it_should(drivers, pair)
            print(f"{kind}: {pair.ends}", file=sys.stderr, flush=True)
            shutil.rmtree(folder / f"{kind} {number}")
        wrong += repetitions - good
        for row, (end, count) in enumerate(ends.most_common()):
            table.add_row(kind if not row else "", end, str(count), str(good) if not row else "")
    Console(width=120).print(table)
    return wrong


def _as_it_should(drivers: Drivers, pair: Pair) -> bool:
    """One of them wrote it, the other ended as it may, and the published checkpoint is whole."""
    if not set(pair.ends) <= _ENDS.keys() or pair.ends.count("written") != 1:
        return False
    others = pair.ends[1] == "written" and "refused: another checkpoint is there" in pair.ends
    if not others and weight_sums(pair.output) != drivers.sums:
        return False
    return drivers.verified(pair.output)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--kind", action="append", choices=list(_KINDS), help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="another checkpoint than one layer of SmolLM2")
    parser.add_argument("--calibration", type=Path, help="its text")
    parser.add_argument("--address", help="a Ray that runs already, with two CPUs")
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
