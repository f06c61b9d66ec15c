"""The base of a run as a model that is streamed, and the workers that stream it."""

from pipeline.run import Run
from pipeline.stream.evaluation import Crew
from pipeline.stream.models import Model
from schemas.errors import WorkerDiedError
from schemas.model.dtypes import STORED
from schemas.run.plan import ClusterSpec
from workers.checkpoint.source import Source


def base_of(run: Run, dtype: str) -> Model:
    """Return the base of a run, to be computed in a dtype."""
    config = run.config
    source = Source(config.model, config.revision, run.spec, STORED[dtype], config.fetched)
    return Model(config.model, run.inputs.folder, source)


def crew_of(run: Run, identity: str) -> tuple[Crew, ClusterSpec]:
    """Return the workers of the pool, which have released their layers, and what they are.

    Nothing looks at a device for it: these workers hold them all. Raises WorkerDiedError if none of
    them lives.
    """
    run.pool.each("release")  # which drops those of a node that is gone
    if not (workers := run.pool.workers):
        raise WorkerDiedError("evaluate: no worker is left")
    there_are = run.plan.cluster.model_copy(update={"workers": len(workers)})
    return Crew(workers, run.store, identity, run.discard), there_are
