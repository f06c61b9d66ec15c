"""progress.json in the run directory: lets `svdllm status` show a driver, from any machine."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

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
    except CompressorError as error:
        kept.end(str(error))
        raise
    finally:
        progress.watchers.remove(kept.note)


class _Journal:
    def __init__(self, root: Location, plan: Plan, progress: Progress) -> None:
        self._place, self._progress = root / NAME, progress
        self._planned = {stage.name: stage.total for stage in plan.stages if stage.total}
        self._last = (float("-inf"), "")

    def note(self, stage: Stage) -> None:
        written, name = self._last
        if stage.name == name and time.monotonic() - written < EVERY_S:
            return
        self._last = (time.monotonic(), stage.name)
        self._write(stage, seconds_left(self._planned, self._progress.seconds, stage))

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


def seconds_left(
    planned: Mapping[StageName, float], spent: Mapping[StageName, float], stage: Stage
) -> float | None:
    """Estimate the rest of this stage from its own rate, and later ones from plan and pace so far.

    None if nothing was planned and no item of this stage is done.
    """
    names = list(planned)
    ended = [name for name in names if name in spent and name != stage.name]
    pace = sum(spent[name] for name in ended) / sum(planned[name] for name in ended) if ended else 1
    after = names[names.index(stage.name) + 1 :] if stage.name in names else names
    later = sum(planned[name] for name in after if name not in spent)
    if stage.done:
        return stage.elapsed * (stage.total - stage.done) / stage.done + later * pace
    if stage.name in planned:
        return max(planned[stage.name] * pace - stage.elapsed, 0.0) + later * pace
    return later * pace if planned else None
