"""Results compared with one base, whose layers run once for all of them."""

import time

from torch import Tensor

from pipeline.progress import Progress
from pipeline.stream.boundaries import Boundary
from pipeline.stream.evaluation import Crew, Evaluation, window_batches
from pipeline.stream.models import Model
from schemas.request.groups import ClusterConfig
from schemas.result.evaluation import ModelEvaluation, Speed
from schemas.run.plan import ClusterSpec
from workers.evaluation.scoring import total
from workers.storage.keys import speed_key


def compare(
    base: Model,
    result: Model,
    windows: Tensor,
    where: ClusterConfig,
    cluster: ClusterSpec,
    progress: Progress,
    crew: Crew,
    kept: Boundary,
) -> tuple[ModelEvaluation, ...]:
    """Score base and result on windows (w, length) of tokens with a crew, on a started Ray.

    `kept` are the base's last hidden states. Unless they are complete, its layers run, by
    themselves, and leave them there with their speed. Comparing takes no more than its head.
    """
    speed_at = speed_key(kept.identity)
    held = kept.holds(window_batches(windows))
    record = crew.store.record(speed_at) if held else None
    if record is None:
        if held:  # it was stopped before it had said how fast it was
            crew.discard(kept.prefix)
        start = time.perf_counter()
        alone = Evaluation([base], windows, where, cluster, progress, above=kept)
        alone.by(crew)
        record = crew.store.commit(speed_at, (), alone.speed(0, start).model_dump())
    start = time.perf_counter()
    both = Evaluation([base, result], windows, where, cluster, progress, below=kept)
    score = total(both.by(crew))
    speeds = Speed.model_validate(record.facts), both.speed(1, start)
    return tuple(both.of(number, score, speed) for number, speed in enumerate(speeds))
