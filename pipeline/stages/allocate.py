"""Allocate: the rank of every matrix, from the spectra of all matrices."""

from pipeline.cluster.calls import result
from pipeline.stages.output import Output


def allocate(output: Output) -> None:
    """Set `allocation`: the allocator actor gathers the spectra and shares the ranks out."""
    run, ratio = output.run, output.ratio
    with run.progress.stage("allocate", 1, "model") as stage:
        call = run.allocator.gather.remote(run.spec.matrices, run.ids.bases, set(output.given_up))
        result(call, "gather losses", run.timeout)
        call = run.allocator.allocate.remote(ratio)
        allocation = output.allocation = result(call, f"allocate {ratio}", run.timeout)
        stage.advance()
    share = allocation.parameters / allocation.dense_parameters
    nats = "" if allocation.nats is None else f", predicted +{allocation.nats:.4f} nats a token"
    multiple, below = run.config.allocation.rank_multiple or 1, ""
    if multiple > 1:
        unused = 1 - allocation.parameters / max(allocation.budget, 1)
        below = f", {unused:.2%} below it in ranks that are multiples of {multiple}"
    run.progress.note(
        f"ratio {ratio}: {allocation.parameters:,} of {allocation.dense_parameters:,} targeted "
        f"parameters stay ({share:.2%}, budget {allocation.budget:,}{below}){nats}"
    )
