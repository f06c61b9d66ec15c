"""Calibrate and factorise: the moments of every tap, then the basis of every matrix."""

from collections.abc import Callable

from torch import Tensor

from pipeline.cluster import wait_for
from pipeline.run import Run
from pipeline.stream import stream_backward, stream_forward, waiter
from schemas.moments import Pass, Tap
from workers.compression import basis_key, moment_key, spectrum_key


def calibrate(run: Run) -> None:
    """Stream the text through the layer shards, and commit every moment that is not there yet."""
    pending = [tap for tap in run.taps if not run.store.record(moment_key(run.ids, tap))]
    if not pending:
        run.progress.note("calibrate: all moments are there")
        return
    with run.progress.stage("load", len(run.workers), "shards") as stage:
        loads = {
            worker.load.remote(shard, [tap for tap in pending if tap.layer in shard.range]): "load"
            for worker, shard in zip(run.workers, run.plan.shards, strict=True)
        }
        wait_for(loads, run.timeout, lambda _: stage.advance())
    _stream(run, pending, "forward", run.inputs.forward, stream_forward)
    if run.inputs.backward is not None:
        _stream(run, pending, "backward", run.inputs.backward, stream_backward)
    releases = {worker.release.remote(): "release of weights" for worker in run.workers}
    wait_for(releases, run.timeout)


def factorise(run: Run) -> None:
    """Commit the basis of every matrix where its weights lie, all shards at once."""
    ids = run.ids.bases
    pending = [
        matrix
        for matrix in run.spec.matrices
        if not run.store.record(spectrum_key(ids, matrix.name))
        or not run.store.record(basis_key(ids, matrix.name))
    ]
    if not pending:
        run.progress.note("factorise: all bases are there")
        return
    with run.progress.stage("factorise", len(pending), "matrices") as stage:
        calls = {
            run.owner(matrix).factorise.remote(matrix): f"factorise {matrix.name}"
            for matrix in pending
        }
        wait_for(calls, run.timeout, lambda _: stage.advance())


def _stream(
    run: Run, pending: list[Tap], direction: Pass, windows: Tensor, stream: Callable[..., None]
) -> None:
    wanted = [tap for tap in pending if tap.direction == direction]
    if not wanted:
        return
    text = run.config.calibration
    with run.progress.stage(f"calibrate {direction}", len(windows), "windows") as stage:

        def done(tokens: int) -> None:
            stage.advance(tokens // windows.shape[1], tokens)

        wait = waiter(f"calibrate {direction}", run.timeout, done)
        stream(run.workers, windows, text.micro_batch, text.segments, wait)
    with run.progress.stage(f"commit {direction}", len(wanted), "moments") as stage:
        commits = {worker.commit_moments.remote(direction): "commit" for worker in run.workers}
        wait_for(commits, run.timeout, lambda records: stage.advance(len(records)))
