"""The whole of a run: inspect, plan, calibrate, factorise, allocate, truncate, assemble, verify."""

from pipeline.cluster.object_store import run_bytes
from pipeline.cluster.session import ray_session
from pipeline.metrics import measured
from pipeline.plan.planner import require_disk
from pipeline.progress import Progress
from pipeline.request.inputs import gather
from pipeline.request.settle import settle
from pipeline.run import Run, announce, start
from pipeline.run_directory.earlier import set_aside
from pipeline.run_directory.journal import journal
from pipeline.run_directory.ownership import owned
from pipeline.stages.calibrate import calibrate
from pipeline.stages.factorise import factorise
from pipeline.stages.output import find_output, make_output
from pipeline.supervise import supervise
from schemas.request.config import RunConfig
from schemas.request.gradients import with_gradients
from schemas.result.manifest import OutputResult, RunResult
from workers.process.failures import storage_explained
from workers.process.logs import now_about
from workers.process.memory import give_back, peak_anonymous_bytes, share_arena
from workers.storage.keys import OWNER


def compress(config: RunConfig, progress: Progress | None = None, fresh: bool = False) -> RunResult:
    """Compress a checkpoint at every ratio of `config`; what is finished already is not redone.

    `fresh` sets aside what ran in the run directory before. Raises InputError before any expensive
    work, or RunError, after which the same call continues.
    """
    share_arena()
    config, progress = settle(config), progress or Progress()
    now_about(run=str(config.run_folder))
    with progress.stage("inspect", 1, "checkpoint") as stage:
        inputs = gather(config)
        config = with_gradients(config, inputs.spec)
        stage.advance()
    if fresh:
        set_aside(config.run_folder, progress)
    with (
        storage_explained("the driver", config.run_folder),
        owned(config.run_folder / OWNER, progress.note) as ownership,
        ray_session(config.cluster, config.numerics.threads, run_bytes(config, inputs.spec)),
        measured(progress),
    ):
        outputs, worker_peaks = supervise(
            config,
            progress,
            lambda config, quarantine: start(config, inputs, progress, ownership, quarantine),
            _stages,
        )
    give_back()
    return RunResult(
        outputs=outputs,
        seconds=progress.seconds,
        busy=progress.busy,
        driver_peak_bytes=peak_anonymous_bytes(),
        worker_peak_bytes=worker_peaks,
    )


def _stages(run: Run) -> tuple[tuple[OutputResult, ...], tuple[int, ...]]:
    """The checkpoint at every ratio, and the peak memory of the workers that are left."""
    found = {ratio: find_output(run, ratio) for ratio in run.config.ratio}
    if None in found.values():
        require_disk(run.plan.disk, run.config, run.committed_bytes())
        announce(run)
    with journal(run.store.root, run.plan, run.progress):
        if None in found.values():
            calibrate(run)
            factorise(run, run.spec.matrices)
            run.pool.quarantine.require()
        outputs = tuple(there or make_output(run, ratio) for ratio, there in found.items())
    return outputs, (*run.pool.peaks, *run.pool.each("peak_memory"))
