"""The base of a run as a model that is streamed, and the workers that stream it."""

from pipeline.cluster.capacity import workers_there
from pipeline.run import Run
from pipeline.stream.evaluation import Crew
from pipeline.stream.models import Model
from schemas.model.dtypes import STORED
from schemas.run.plan import ClusterSpec
from workers.checkpoint.source import Source


def base_of(run: Run, dtype: str) -> Model:
    """Return the base of a run, to be computed in a dtype."""
    config = run.config
    source = Source(config.model, config.revision, run.spec, STORED[dtype], config.fetched)
    return Model(config.model, run.inputs.folder, source)


def crew_of(run: Run, identity: str) -> tuple[Crew, ClusterSpec]:
    """Return the workers of the pool, as many as the cluster still has room for, and what they are.

    Nothing looks at a device for it: these workers hold them all.
    """
    there = workers_there(run.config.cluster, run.config.numerics.threads)
    workers = run.pool.workers[:there]  # a node may have been lost that the pool does not miss yet
    there_are = run.plan.cluster.model_copy(update={"workers": len(workers)})
    return Crew(workers, run.store, identity, run.discard), there_are
