"""The whole of a run: inspect, plan, calibrate, factorise, allocate, truncate, assemble, verify."""

from pathlib import Path

from pipeline.calibrate import calibrate
from pipeline.cluster import ray_session
from pipeline.factorise import factorise
from pipeline.history import set_aside
from pipeline.inputs import gather
from pipeline.journal import journal
from pipeline.metrics import measured
from pipeline.object_store import run_bytes
from pipeline.outputs import find_output, make_output
from pipeline.ownership import owned
from pipeline.plan import require_disk
from pipeline.progress import Progress
from pipeline.run import Run, announce, start
from pipeline.supervise import supervise
from schemas.config import RunConfig
from schemas.gradients import with_gradients
from schemas.location import locate
from schemas.manifest import OutputResult, RunResult
from workers.documents import is_local
from workers.failures import storage_explained
from workers.fetching import resolve
from workers.items import OWNER
from workers.logs import now_about
from workers.memory import give_back, peak_anonymous_bytes, share_arena
from workers.objects import url_of


def compress(config: RunConfig, progress: Progress | None = None, fresh: bool = False) -> RunResult:
    """Compress a checkpoint at every ratio of `config`; what is finished already is not redone.

    `fresh` sets aside what ran in the run directory before. Raises InputError before any expensive
    work, or RunError, after which the same call continues.
    """
    share_arena()
    config, progress = _settle(config), progress or Progress()
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


def _settle(config: RunConfig) -> RunConfig:
    """The same run in words that mean the same in every process of the cluster, now and later.

    Folders and text files become absolute, a hub id gets the commit that it stands for now, a URL
    stays.
    """
    found: dict[str, object] = {
        name: group.model_copy(update={"text": _absolute(group.text)})
        for name, group in (("calibration", config.calibration), ("evaluation", config.evaluation))
    }
    if isinstance(config.output, Path):
        found["output"] = config.output.expanduser().absolute()
    if not url_of(config.model):
        folder = resolve(config.model, config.revision)
        local = Path(locate(config.model)).expanduser().is_dir()
        found |= {"model": str(folder)} if local else {"revision": folder.name}
    config = config.model_copy(update=found)
    run_folder = config.run_folder
    if isinstance(run_folder, Path):
        run_folder = run_folder.expanduser().absolute()
    return config.model_copy(update={"run_dir": run_folder})


def _absolute(text: str | None) -> str | None:
    """A text, by its full path if it is a local file."""
    if text is None or not is_local(text):
        return text
    return str(Path(text).expanduser().absolute())
