"""progress.json in the run directory: lets `svdllm status` show a driver, from any machine."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, get_args

from pipeline.progress import Progress, Stage
from schemas.errors import CompressorError
from schemas.location import Location
from schemas.run.plan import Plan
from schemas.run.record import Activity
from schemas.run.stages import StageName
from workers.storage.places import write

NAME = "progress.json"
EVERY_S = 10.0


@contextlib.contextmanager
def journal(root: Location, plan: Plan, progress: Progress) -> Iterator[None]:
    """Write the run's activity: at each change of stage, every few seconds, and at its end."""
    kept = _Journal(root, plan, progress)
    progress.watchers.append(kept.note)
    try:
        yield
        kept.end(None)
    except BaseException as error:
        kept.end(str(error) or type(error).__name__)
        raise
    finally:
        progress.watchers.remove(kept.note)


class _Journal:
    def __init__(self, root: Location, plan: Plan, progress: Progress) -> None:
        self._place, self._progress = root / NAME, progress
        self._planned = planned(plan)
        self._last = (float("-inf"), "")

    def note(self, stage: Stage) -> None:
        written, name = self._last
        if stage.name == name and time.monotonic() - written < EVERY_S:
            return
        self._last = (time.monotonic(), stage.name)
        self._write(stage, seconds_left(self._planned, self._progress.ended, stage))

    def end(self, error: str | None) -> None:
        if self._progress.current is not None:
            self._write(self._progress.current, 0.0, error)

    def _write(self, stage: Stage, left: float | None, error: str | None = None) -> None:
        progress = self._progress
        now = 0.0 if stage.ended else stage.elapsed
        activity = Activity(
            stage=stage.name,
            done=stage.done,
            total=stage.total,
            unit=stage.unit,
            tokens_per_second=stage.tokens_per_second,
            spent=progress.seconds | {stage.name: progress.seconds.get(stage.name, 0.0) + now},
            left=left,
            warnings=tuple(progress.warnings),
            error=error,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with contextlib.suppress(CompressorError, OSError):  # whoever needs the place reports it
            write(self._place, activity.model_dump_json(indent=2).encode())


class Planned(NamedTuple):
    """The seconds that a plan gives a stage, over all `times` that it runs."""

    seconds: float
    times: int


def planned(plan: Plan) -> dict[StageName, Planned]:
    """Return what a plan says of stages, as far as throughputs are known."""
    waves, names = len(plan.waves), get_args(StageName)
    wave, cut = names.index("load"), names.index("allocate")  # what follows them is of one of each
    often = dict.fromkeys(names[wave:cut], waves) | dict.fromkeys(names[cut:], plan.cuts)
    often |= {"teach": 1, "evaluate": plan.cuts + 1}  # of the base once, too
    if any(stage.name == "calibrate backward" for stage in plan.stages):
        often["load"] = 2 * waves - 1  # backward, only the last wave is still there
    return {s.name: Planned(s.total, often.get(s.name, 1)) for s in plan.stages if s.total}


def seconds_left(
    planned: Mapping[StageName, Planned],
    ended: Mapping[StageName, Sequence[float]],
    stage: Stage,
) -> float | None:
    """Estimate the rest of this stage from its own rate, and later ones from plan and pace so far.

    `ended` has the seconds of each time that a stage did. A stage before this one that never did
    was finished earlier. None if nothing was planned and no item of this stage is done.
    """
    before = list(planned)[: list(planned).index(stage.name)] if stage.name in planned else []
    done = later = once = 0.0
    for name, (seconds, times) in planned.items():
        each, count = seconds / times, min(len(ended.get(name, ())), times)
        done += each * count
        if name == stage.name:
            once, count = each, min(count + 1, times)
        if count or name not in before:
            later += each * (times - count)
    pace = math.fsum(math.fsum(ended.get(name, ())) for name in planned) / done if done else 1.0
    if stage.done:
        return stage.elapsed * (stage.total - stage.done) / stage.done + later * pace
    return max(once * pace - stage.elapsed, 0.0) + later * pace if planned else None
