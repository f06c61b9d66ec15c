"""Progress for the user: a live line on a terminal, plain log lines elsewhere."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import zip_longest

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from schemas.model.spec import MatrixSpec
from schemas.run.stages import StageName
from workers.process.logs import as_json, log, now_about

_LOG_EVERY_S = 10.0


class Progress:
    """The stages of a run, one at a time: how many items of how many, and how fast."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self.watchers: list[Callable[[Stage], None]] = []
        self.begin()

    def begin(self) -> None:
        """Forget the times and warnings of the run before."""
        self.started = datetime.now(UTC)
        self.seconds: dict[StageName, float] = {}
        self.ended: dict[StageName, list[float]] = {}  # the seconds of each time that it did
        self.warnings: list[str] = []
        self.current: Stage | None = None
        self._busy: dict[StageName, list[float]] = {}

    @contextlib.contextmanager
    def stage(
        self, name: StageName, total: int, unit: str, matrices: Iterable[MatrixSpec] = ()
    ) -> Iterator["Stage"]:
        """Open a stage of `total` items that is to finish `matrices`; record its duration under
        `name`, also if it fails.
        """
        now_about(stage=name)
        draws = self._console.is_terminal and not self._console.is_dumb_terminal
        bars = self._bars() if draws and not as_json() else None
        stage = self.current = Stage(name, total, unit, bars, self._watch, matrices)
        self._watch(stage)
        try:
            with bars or contextlib.nullcontext():
                yield stage
        finally:
            stage.ended, seconds = True, stage.elapsed
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.ended.setdefault(name, []).append(seconds)
        busy = zip_longest(self._busy.get(name, []), stage.busy, fillvalue=0.0)
        self._busy[name] = [before + now for before, now in busy]
        line = f"{name}: {stage.done} {unit} in {seconds:.1f} s{stage.rate()}"
        shares = ", ".join(f"{part / seconds:.0%}" for part in stage.busy)
        log.info("%s; workers busy %s" if shares else "%s%s", line, shares)

    @property
    def busy(self) -> dict[StageName, tuple[float, ...]]:
        """The share of a stage's time, if it ended, that each worker was busy, where measured."""
        return {
            name: tuple(part / math.fsum(self.ended[name]) for part in parts)
            for name, parts in self._busy.items()
            if parts
        }

    def note(self, message: str) -> None:
        log.info(message)

    def warn(self, message: str) -> None:
        """Log a warning and keep it."""
        self.warnings.append(message)
        log.warning(message)

    def _watch(self, stage: "Stage") -> None:
        for watcher in self.watchers:
            watcher(stage)

    def _bars(self) -> Bars:
        return Bars(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )


class Stage:
    """One stage under way."""

    def __init__(
        self,
        name: StageName,
        total: int,
        unit: str,
        bars: Bars | None,
        watch: Callable[["Stage"], None],
        matrices: Iterable[MatrixSpec],
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self._bars, self._watch = bars, watch
        self._start = self._streaming = self._logged = time.monotonic()
        self._left = Counter(matrix.layer for matrix in matrices)
        self.done = self.tokens = self.matrices = self.layers = 0
        self.busy: list[float] = []  # seconds of each worker, if a stage measures them
        self.ended = False  # whether `Progress.seconds` has its time
        self._task = bars.add_task(name, total=total, unit=unit, rate="") if bars else None

    def advance(self, items: int = 1, tokens: int = 0, matrices: Sequence[MatrixSpec] = ()) -> None:
        """Count items, tokens if the stage streams them, finished `matrices`, and the layers that
        these complete.
        """
        if not self.tokens + tokens:
            self._streaming = time.monotonic()  # what comes before any tokens does not slow them
        self.done += items
        self.tokens += tokens
        self.matrices += len(matrices)
        for matrix in matrices:
            self._left[matrix.layer] -= 1
            self.layers += not self._left[matrix.layer]
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self.done, rate=self.rate())
        elif self.done < self.total and time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            log.info("%s: %d/%d %s%s", self.name, self.done, self.total, self.unit, self.rate())
        self._watch(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._start

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second so far; None if the stage streams none."""
        seconds = time.monotonic() - self._streaming
        return self.tokens / max(seconds, 1e-9) if self.tokens else None

    def rate(self) -> str:
        """Format the tokens a second so far; empty if there are no tokens."""
        rate = self.tokens_per_second
        return "" if rate is None else f", {rate:,.0f} tokens/s"
