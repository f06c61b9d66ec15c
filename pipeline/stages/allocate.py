"""Allocate: the rank of every matrix, from the spectra of all matrices."""

from collections.abc import Collection

from pipeline.cluster.calls import result
from pipeline.run import Run
from pipeline.stages.output import Output
from schemas.run.ranks import AllocationResult


def gather(run: Run, given_up: Collection[str]) -> None:
    """Let the allocator read the spectra of all matrices but those that have to stay dense."""
    spec = run.spec
    call = run.allocator.gather.remote(spec.matrices, run.ids, set(given_up), spec.neurons)
    result(call, "gather losses", run.timeout)


def ranks_at(run: Run, ratio: float) -> AllocationResult:
    """Return the ranks at a ratio, of the spectra that were gathered last."""
    call = run.allocator.allocate.remote(ratio)
    found: AllocationResult = result(call, f"allocate {ratio}", run.timeout)
    return found


def allocate(output: Output) -> None:
    """Set `allocation`: the allocator actor gathers the spectra and shares the ranks out."""
    run, ratio = output.run, output.ratio
    with run.progress.stage("allocate", 1, "model") as stage:
        gather(run, output.given_up)
        allocation = output.allocation = ranks_at(run, ratio)
        stage.advance()
    share = allocation.parameters / allocation.dense_parameters
    nats = "" if allocation.nats is None else f", predicted +{allocation.nats:.4f} nats a token"
    multiple, below = run.config.allocation.multiple, ""
    if multiple > 1:
        unused = 1 - allocation.parameters / max(allocation.budget, 1)
        below = f", {unused:.2%} below it in ranks that are multiples of {multiple}"
    fewer = sum(neurons.name in allocation.pruned for neurons in run.spec.neurons)
    mlps = f"; {fewer} of {len(run.spec.neurons)} MLPs lose neurons, not ranks" if fewer else ""
    run.progress.note(
        f"ratio {ratio}: {allocation.parameters:,} of {allocation.dense_parameters:,} targeted "
        f"parameters stay ({share:.2%}, budget {allocation.budget:,}{below}){nats}{mlps}"
    )
