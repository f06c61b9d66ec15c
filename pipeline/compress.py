"""A whole run: inspect, plan, calibrate, factorise, allocate, truncate, assemble, verify."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

from pipeline.cluster.object_store import run_bytes
from pipeline.cluster.quarantine import Quarantine
from pipeline.cluster.session import ray_session
from pipeline.metrics import measured
from pipeline.plan.planner import require_disk
from pipeline.progress import Progress
from pipeline.request.inputs import Inputs, gather
from pipeline.request.preflight import Checked, look
from pipeline.run import Run, announce, start
from pipeline.run_directory.earlier import set_aside
from pipeline.run_directory.journal import journal
from pipeline.run_directory.ownership import Ownership, owned
from pipeline.stages.adopt import adopt, inherit
from pipeline.stages.allocate import allocate
from pipeline.stages.assemble import assemble, write_around
from pipeline.stages.budget import keep_budget, published_ratio
from pipeline.stages.calibrate import calibrate, forget_streams
from pipeline.stages.evaluate import evaluate, known_scores, score
from pipeline.stages.factorise import factorise
from pipeline.stages.output import Output, OutputStage
from pipeline.stages.present import present
from pipeline.stages.publish import find_published, publish
from pipeline.stages.recover import awaits_recovery, forget, job_of, teach
from pipeline.stages.staging import staged
from pipeline.stages.truncate import truncate
from pipeline.stages.verify import verify
from pipeline.stages.write import WeightFiles
from pipeline.supervise import Supervisor
from schemas.request.config import RunConfig
from schemas.request.gradients import with_gradients
from schemas.result.budget import BudgetResult
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import OutputResult, RunResult
from schemas.run.plan import Plan
from workers.process.failures import storage_explained
from workers.process.memory import give_back, peak_anonymous_bytes, share_arena
from workers.recovery.job import Job
from workers.storage.keys import OWNER, TRAINING
from workers.storage.places import remove_below

_AROUND: tuple[OutputStage, ...] = (assemble, verify, evaluate, present, publish)
"""What happens to a checkpoint after its weight files are written, in this order."""


def compress(
    request: RunConfig | Checked, progress: Progress | None = None, fresh: bool = False
) -> RunResult:
    """Compress a checkpoint at every ratio of a request; finished work is not redone.

    A request of several rounds is a run for each, of which this returns the last one's result.
    `fresh` sets aside earlier work in the run directory. Raises InputError before any expensive
    work, or RunError, after which the same call continues.
    """
    progress = progress or Progress()
    asked = request.config if isinstance(request, Checked) else request
    if asked.rounds == 1 or asked.adopt is not None:
        return _compress(request, progress, fresh)
    if not isinstance(request, Checked):
        asked = look(asked).config  # of which the last round is the same
    if fresh:
        set_aside(asked.run_folder, progress)
    for config in asked.in_rounds():
        progress.begin()
        progress.note(
            f"round {config.rounds} of {asked.rounds}: ratio {config.ratio[0]:g}, in "
            f"{config.run_folder}"
        )
        made = _compress(config, progress)
    return made


def _compress(request: RunConfig | Checked, progress: Progress, fresh: bool = False) -> RunResult:
    """Do the same for one run."""
    share_arena()
    with progress.stage("inspect", 1, "checkpoint") as stage:
        checked = request if isinstance(request, Checked) else look(request)
        inputs = gather(checked)
        config = with_gradients(checked.config, inputs.spec)
        stage.advance()
    for text in inputs.texts:
        if text.remarks:
            progress.note(str(text))
    if fresh:
        set_aside(config.run_folder, progress)
    with (
        storage_explained("the driver", config.run_folder),
        owned(config.run_folder / OWNER, progress.note) as ownership,
        ray_session(config.cluster, config.numerics.threads, run_bytes(config, inputs.spec)),
        measured(progress),
    ):
        supervisor = Supervisor(config, progress)

        def begin(config: RunConfig, quarantine: Quarantine) -> Run:
            return start(config, inputs, progress, ownership, quarantine)

        peaks: list[int] = []
        while (made := supervisor.run(begin, _stages)).recoveries:
            peaks = _higher(peaks, made.worker_peaks)
            _recover(config, made, inputs, progress, ownership)
        ownership.require()
        remove_below(config.run_folder / TRAINING)
    give_back()
    return RunResult(
        outputs=made.outputs,
        seconds=progress.seconds,
        busy=progress.busy,
        driver_peak_bytes=peak_anonymous_bytes(),
        worker_peak_bytes=tuple(_higher(_higher(peaks, made.worker_peaks), _trained(made))),
    )


class _Made(NamedTuple):
    """What the workers of a run have made: checkpoints, or factors that wait for recovery.

    `worker_peaks` is the peak memory of each worker that was there at the end, in bytes.
    """

    outputs: tuple[OutputResult, ...]
    recoveries: tuple[Job, ...]
    worker_peaks: tuple[int, ...]
    plan: Plan


def _higher(peaks: Sequence[int], others: Sequence[int]) -> list[int]:
    return [max(both) for both in zip_longest(peaks, others, fillvalue=0)]


def _trained(made: _Made) -> list[int]:
    """Return the peak memory of the first worker that trained factors, if any did."""
    recoveries = [output.compression.recovery for output in made.outputs]
    return [max((found.peak_bytes or 0 for found in recoveries if found), default=0)]


def _recover(
    config: RunConfig, made: _Made, inputs: Inputs, progress: Progress, ownership: Ownership
) -> None:
    """Train the factors that wait for it; the workers have ended."""
    from pipeline.cluster.training import train  # Ray Train loads only when needed

    with journal(config.run_folder, made.plan, progress):
        for job in made.recoveries:
            train(job, inputs, progress, ownership.require)


def _stages(run: Run) -> _Made:
    """Make the checkpoint at every ratio, or its factors if recovery is still to train them."""
    ratios = run.config.ratio or published_ratio(run)
    found = {ratio: find_published(run, ratio) for ratio in ratios}
    budget, missing = None, not found or None in found.values()
    if missing:
        published = sum(there.compression.bytes_after for there in found.values() if there)
        require_disk(run.plan.disk, run.config, published)
        announce(run)
    with journal(run.store.root, run.plan, run.progress) if missing else nullcontext():
        if missing and run.config.calibrates:
            calibrate(run)
            factorise(run, run.spec.matrices)
            run.pool.quarantine.require()
            forget_streams(run)
        if not found:
            ratio, budget = _search(run)
            found[ratio] = None
        made = [there or make_output(run, ratio, budget) for ratio, there in found.items()]
        recoveries = tuple(one for one in made if isinstance(one, Job))
        (teach if recoveries else forget)(run)
    return _Made(
        outputs=tuple(one for one in made if isinstance(one, OutputResult)),
        recoveries=recoveries,
        worker_peaks=tuple(run.pool.each("peak_memory")),
        plan=run.plan,
    )


def _search(run: Run) -> tuple[float, BudgetResult]:
    """Find the ratio that a budget asks for, and forget the weight files that an earlier start has
    left at any other. If a matrix is given up meanwhile, or at that ratio, it is searched again:
    what was found is of other ranks.
    """
    while True:
        given_up = run.given_up
        ratio, budget = keep_budget(run, partial(_try, run))
        if run.config.on_failure == "keep_dense":
            _cut(run, ratio)
        if given_up == run.given_up:
            break
    for trial in budget.trials:
        if trial.ratio != ratio:
            Output(run, trial.ratio).discard()
    return ratio, budget


def _try(run: Run, ratio: float) -> EvaluationReport:
    """Score a checkpoint at a ratio that a budget tries; its weight files do not stay."""
    found = known_scores(Output(run, ratio))
    if found is None:
        output = _cut(run, ratio)
        with staged(output):
            around = run.spec.split, output.matrices, list(output.files.values())
            write_around(output.staging, run.inputs.folder, *around)
            found = score(output)
        output.discard()
    return found


def make_output(run: Run, ratio: float, budget: BudgetResult | None) -> OutputResult | Job:
    """Allocate, truncate, write, assemble, verify, evaluate, present and publish one checkpoint;
    stop after truncation if its factors are to be trained, and are not yet.

    Raises QuarantineError if an item failed again and again, unless its matrices may stay dense.
    """
    output = _cut(run, ratio, budget)
    if awaits_recovery(output):
        return job_of(output)
    with staged(output):
        for stage in _AROUND:
            stage(output)
    return output.result()


def _cut(run: Run, ratio: float, budget: BudgetResult | None = None) -> Output:
    """Cut the matrices of an output, and write its weight files unless recovery has to come before.

    Ranks are shared out once more if a matrix was given up. Both they and factors may be those of a
    finished checkpoint.
    """
    share_out, cut = (allocate, truncate) if run.config.calibrates else (inherit, adopt)
    while True:
        output = Output(run, ratio, budget=budget)
        share_out(output)
        if awaits_recovery(output):
            output.start_over()  # it is of other trained factors, of which one was damaged
            cut(output)
        else:
            files = WeightFiles(output)
            cut(output, files.ready)
            files.write()
        run.pool.quarantine.require()
        if run.given_up == output.given_up:
            return output
        output.discard()
