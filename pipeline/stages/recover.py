"""Recover: which outputs have factors that are to be trained before their files are written, and
what the base teaches them.
"""

import torch

from pipeline.run import Run
from pipeline.stages.output import Output
from pipeline.stages.scored import base_of, crew_of
from pipeline.stream.boundaries import Boundary
from pipeline.stream.evaluation import Evaluation, window_batches
from schemas.errors import ConfigError, RunError
from workers.recovery.job import Job
from workers.storage.keys import recovered_key, recovered_norms_key, recovered_prefix


def awaits_recovery(output: Output) -> bool:
    """Whether the factors of an output are to be trained: they are not yet, or an item of what was
    trained has been forgotten, because it was damaged.
    """
    run, identity = output.run, output.identity
    if not run.config.trains:
        return False
    cut = [name for name, rank in output.allocation.ranks.items() if rank is not None]
    needed = {recovered_key(identity, name) for name in (None, *cut)}
    if run.config.recovery.norms:
        needed.add(recovered_norms_key(identity))
    there = {record.key for record in run.store.records(recovered_prefix(identity))}
    return not needed <= there


def job_of(output: Output) -> Job:
    """Describe the recovery of an output. Raises ConfigError if none of its matrices is cut."""
    if not any(output.allocation.ranks.values()):
        raise ConfigError(
            f"{output.place}: no matrix is cut, so there is nothing to train; leave out --refine "
            "and --recover"
        )
    run = output.run
    return Job(
        config=run.config,
        spec=run.spec,
        identity=output.identity,
        ids=run.ids,
        taught=_taught(run).identity,
        dtype=run.facts.training_dtype,
        memory=run.plan.recovery,
        ranks=output.allocation.ranks,
        rows=output.rows,
        own_norms=run.inputs.own_norms(run.config),
        on_gpu=run.plan.cluster.on_gpu,
    )


def teach(run: Run) -> None:
    """Commit the base's last hidden states on the text of a recovery, which are its exact logits in
    less space (2 bytes x hidden size a token in bfloat16); the base runs shard by shard, once.
    """
    text = run.inputs.recovery
    if text is None or not run.config.recovery.taught:
        return
    trained = [text.windows] if run.config.recovery.enabled else []  # else they only judge
    windows, above = torch.cat((text.held_out, *trained)), _taught(run)
    if above.holds(window_batches(windows)):
        return
    base = base_of(run, run.facts.training_dtype)
    crew, cluster = crew_of(run, above.identity)
    Evaluation(
        [base], windows, run.config.cluster, cluster, run.progress, above=above, stage="teach"
    ).by(crew)


def forget(run: Run) -> None:
    """Remove these hidden states, once every output is trained."""
    if run.ids.taught is not None:
        run.discard(f"boundaries/{run.ids.taught}")


def _taught(run: Run) -> Boundary:
    if run.ids.taught is None:
        raise RunError("the run has no text for its recovery; start it again")
    return Boundary(run.store, run.ids.taught, run.spec.layers)
