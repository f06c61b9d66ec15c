"""The training run of a month, and the nights over it, each in a process of its own."""

import contextlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from pipeline.nightly import catalog
from schemas.request.nightly import CatalogRow
from tests.documents import ROOT
from tests.integration.processes import Command
from tests.integration.support import KINDS, item_attempts
from tests.models import tiny_model
from tests.nights import cut_short, write_checkpoint
from tests.prose import prose
from workers.checkpoint.names import WEIGHTS

NIGHTS = 30
ARRIVALS = ("good",) * 5 + ("half",) * 2 + ("equal",) * 2 + ("bad", "corrupt")
STAGES = ("calibrate forward", "factorise", "assemble")
ATTEMPTS, TWICE, RATIO, GATE = 3, 2, "0.20", "2%"
_LONGEST_S = 900.0
_POLL_S = 0.2


class Drawn(NamedTuple):
    """What a seed decides: arrivals, the stage that each killed night dies in, and a removal."""

    arrivals: dict[int, tuple[str, str]]  # by night: kind and name
    kills: list[str]
    removed_on: int


class Happened(NamedTuple):
    """One night: what was disturbed, how its processes ended, its rows."""

    disturbed: str
    codes: tuple[int, ...]
    rows: list[CatalogRow]


def draw(seed: int) -> Drawn:
    """A good one comes first, so that there is something that others can be equal to."""
    generator = random.Random(seed)
    kinds = generator.sample(ARRIVALS, len(ARRIVALS))
    kinds.remove("good")
    nights = sorted(generator.sample(range(2, 22), len(kinds)))
    names = [f"checkpoint-{500 * (number + 1)}" for number in range(len(kinds) + 1)]
    pairs = zip((1, *nights), ("good", *kinds), names, strict=True)
    return Drawn(
        arrivals={night: (kind, name) for night, kind, name in pairs},
        kills=generator.sample(STAGES, len(STAGES)),
        removed_on=generator.randrange(22, NIGHTS - 2),
    )


class Month:
    """The training run, and the nights over it."""

    def __init__(self, folder: Path, address: str, drawn: Drawn) -> None:
        self.drawn, self._address = drawn, address
        self.source, self.prefix = folder / "source", folder / "out"
        self.source.mkdir(parents=True)
        self.text = folder / "prose.txt"
        self.text.write_text(prose(40_000))
        self._good = tiny_model(folder / "good", seed=3, initializer_range=0.05)
        self._bad = tiny_model(folder / "bad", seed=0)
        self._half: dict[int, str] = {}
        self._kills, self._twice = list(drawn.kills), TWICE
        self._killed: dict[str, dict[str, str]] = {}  # items of runs that were killed, by folder
        self.repeated: set[str] = set()
        self.seen_again: set[str] = set()

    def night(self, number: int) -> tuple[str, Happened]:
        """What appeared in the source, and what the night made of it."""
        appeared = self.train(number)
        before = len(catalog.read(self.prefix))
        work = number in self.drawn.arrivals and self.drawn.arrivals[number][0] in ("good", "bad")
        disturbed, codes = "", tuple[int, ...]()
        if work and number > 1 and self._kills:
            stage = self._kills.pop(0)
            disturbed, codes = f"killed in {stage}", (self.kill(stage),)
        elif work and self._twice:
            self._twice -= 1
            disturbed, codes = "started twice", self.two()
        else:
            codes = (self.once(),)
        return appeared, Happened(disturbed, codes, catalog.read(self.prefix)[before:])

    def train(self, number: int) -> str:
        """Write what arrives tonight; in a few words."""
        words = []
        if name := self._half.pop(number, ""):
            shutil.rmtree(self.source / name)
            self._write("good", name)
            words.append(f"{name} is whole")
        if number in self.drawn.arrivals:
            kind, name = self.drawn.arrivals[number]
            self._write(kind, name)
            if kind == "half":
                self._half[number + 2] = name
            words.append(f"{name}: {kind}")
        if number == self.drawn.removed_on:
            shutil.rmtree(self.source / "checkpoint-500")
            words.append("checkpoint-500 is removed")
        return ", ".join(words)

    def _write(self, kind: str, name: str) -> None:
        template = self._bad if kind == "bad" else self._good
        version = 500 if kind == "equal" else int(name.rpartition("-")[2])
        folder = write_checkpoint(template, self.source / name, version)
        if kind == "half":
            cut_short(folder)
        if kind == "corrupt":
            tensors = load_file(folder / WEIGHTS)
            tensors["model.layers.1.self_attn.q_proj.weight"][3, 5] = torch.nan
            save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    def _start(self) -> Command:
        asked = ["nightly", "--watch", str(self.source), "--output", str(self.prefix)]
        asked += ["--ratio", RATIO, "--max", "2", "--gate", GATE, "--attempts", str(ATTEMPTS)]
        asked += ["--set", "gate.generation=false", "--device", "cpu", "--workers", "1"]
        asked += ["--calibration", str(self.text), "--calibration-samples", "8"]
        asked += ["--sequence-length", "64", "--gradient-samples", "8", "--gradient-length", "64"]
        asked += ["--evaluate", str(self.text), "--set", "evaluation.sequence_length=64"]
        asked += ["--set", "evaluation.windows=6", "--set", "calibration.segments=4"]
        return Command(asked, ROOT, {"RAY_ADDRESS": self._address})

    def _end(self, command: Command) -> int:
        """Its exit code, with an eye on the items of runs that it goes on with."""
        end = time.monotonic() + _LONGEST_S
        try:
            while command.code is None and time.monotonic() < end:
                self._look()
                time.sleep(_POLL_S)
            code = command.wait(1)
        finally:
            command.close()
        if code not in (0, 3):
            raise SystemExit(f"exit code {code}:\n{command.log}")
        return code

    def once(self) -> int:
        """A night that nothing disturbs; its exit code."""
        return self._end(self._start())

    def kill(self, stage: str) -> int:
        """SIGKILL when a stage has ended."""
        command = self._start()
        try:
            with _ended(command, f"no {stage}"):
                while f" {stage}: " not in command.log:
                    time.sleep(_POLL_S)
            command.send(signal.SIGKILL)
            command.wait()
        finally:
            command.close()
        rows = catalog.read(self.prefix)
        self._killed[rows[-1].folder] = self._items(rows[-1].folder)
        return -9

    def two(self) -> tuple[int, ...]:
        """The second starts while the first compresses."""
        first = self._start()
        with _ended(first, "nothing to compress"):
            while ": compressing at " not in first.log:
                time.sleep(_POLL_S)
        second = self._start()
        refused = self._end(second)
        if "is at work" not in second.log:
            raise SystemExit(f"the second was not refused:\n{second.log}")
        return self._end(first), refused

    def _look(self) -> None:
        """An item that was there when a run was killed must be the same still."""
        for folder, before in self._killed.items():
            now = self._items(folder)
            both = before.keys() & now.keys()
            self.seen_again |= {f"{folder}/{key}" for key in both}
            self.repeated |= {f"{folder}/{key}" for key in both if before[key] != now[key]}

    @property
    def kept(self) -> set[str]:
        """The items that were there when their run was killed."""
        return {f"{folder}/{key}" for folder, items in self._killed.items() for key in items}

    def _items(self, folder: str) -> dict[str, str]:
        with contextlib.suppress(FileNotFoundError):  # finished runs are removed
            return item_attempts(self.prefix / "runs" / folder, *KINDS)
        return {}


@contextlib.contextmanager
def _ended(command: Command, what: str) -> Iterator[None]:
    """Says so if a command ends while it is waited for."""
    alarm = signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{what}:\n{command.log}"))
    signal.alarm(int(_LONGEST_S))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
