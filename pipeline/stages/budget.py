"""Budget: the largest removal that keeps a budget, found before the checkpoint is made."""

import math
from collections.abc import Callable
from functools import cache

from pipeline.report.wording import count
from pipeline.run import Run
from pipeline.stages.allocate import gather, ranks_at
from pipeline.stages.evaluate import asked_for
from pipeline.stages.weight_files import total_bytes
from schemas.errors import BudgetError, ConfigError, RunError
from schemas.result.budget import BudgetResult, Trial
from schemas.result.evaluation import EvaluationReport
from schemas.run.identity import fingerprint
from schemas.run.ranks import highest_step, ratio_at
from workers.allocation.search import Found, last, search
from workers.checkpoint.names import SUCCESS
from workers.checkpoint.published import read_compression
from workers.storage.places import exists

_FINE = 1e-5  # steps of a ratio that no trial has to confirm

Try = Callable[[float], EvaluationReport]


def published_ratio(run: Run) -> tuple[float, ...]:
    """Return the ratio of the checkpoint that was published for this budget; none if there is none.

    Raises ConfigError if the output holds one that was made for anything else.
    """
    place = run.config.output
    if not exists(place / SUCCESS):
        return ()
    found = read_compression(place)
    if found.budget is None or found.budget.identity != _identity(run):
        raise ConfigError(
            f"output {place} holds a checkpoint that was not made for {run.config.budget.option} "
            "on this text; name another folder, or remove it"
        )
    return (found.ratio,)


def keep_budget(run: Run, try_at: Try) -> tuple[float, BudgetResult]:
    """Return the ratio that the budget asks for, and how it was found.

    A size asks for the lowest ratio within it, a loss for the highest; `try_at` makes and scores a
    checkpoint at a ratio. Raises BudgetError if no ranks are low enough, RunError if no trial keeps
    the budget.
    """
    gather(run, run.given_up)
    ratio, found = _by_trials(run, try_at) if run.config.budget.measured else _by_size(run)
    run.progress.note(f"{run.config.budget.option}: {_summary(ratio, found)}")
    return ratio, found


def _by_size(run: Run) -> tuple[float, BudgetResult]:
    """Find the lowest ratio whose ranks keep a size; each step takes an allocation."""
    budget = run.config.budget
    limit = budget.size or budget.parameters or 0
    whole = run.spec.parameters

    @cache
    def size(step: int) -> int:
        ranks = ranks_at(run, ratio_at(step, _FINE))
        if budget.size is None:
            return whole - ranks.dense_parameters + ranks.parameters
        return total_bytes(run.spec, run.config.factors, ranks, budget.scheme)

    highest = highest_step(run.config, run.spec, _FINE)
    step = 0 if size(0) <= limit else last(lambda at: size(at) > limit, 0, highest + 1) + 1
    if step > highest:
        raise BudgetError(
            f"{budget.option}: at ratio {ratio_at(highest, _FINE):g}, the highest here, it is "
            f"still {size(highest):,}; ask for more"
        )
    reached = BudgetResult(asked=budget, identity=_identity(run), limit=limit, reached=size(step))
    return ratio_at(step, _FINE), reached


def _by_trials(run: Run, try_at: Try) -> tuple[float, BudgetResult]:
    """Find the highest ratio whose measured loss keeps the limit."""
    budget, step = run.config.budget, run.config.budget.tolerance
    limit = math.log1p(budget.perplexity) if budget.perplexity else budget.kl or 0.0
    trials: dict[int, Trial] = {}

    @cache
    def predicted(at: int) -> float | None:
        return ranks_at(run, ratio_at(at, step)).nats

    def predict(at: int) -> float:
        """Without gradients, a nat for all of the model is as good a start as any."""
        nats = predicted(at)
        return ratio_at(at, step) if nats is None else nats

    def measure(at: int) -> float:
        trials[at] = trial = _trial(run, ratio_at(at, step), predicted(at), limit, try_at)
        said = "" if trial.predicted is None else f"predicted {trial.predicted:.4f}, "
        run.progress.note(
            f"trial {len(trials)}, ratio {trial.ratio:g}: {said}measured {trial.measured:.4f} "
            f"nats, {'within' if trial.kept else 'over'} the {limit:.4f} of {budget.option}"
        )
        return trial.measured

    if not (most := highest_step(run.config, run.spec, step)):
        raise BudgetError(f"{budget.option}: nothing can be removed but by --ratio-by")
    found = search(predict, measure, limit, most, budget.trials)
    if not found.best:
        raise _nothing(run, found)
    return ratio_at(found.best, step), BudgetResult(
        asked=budget,
        identity=_identity(run),
        limit=limit,
        reached=found.measured[found.best],
        predicted=None if predicted(found.predicted) is None else ratio_at(found.predicted, step),
        trials=tuple(trials.values()),
    )


def _trial(run: Run, ratio: float, predicted: float | None, limit: float, try_at: Try) -> Trial:
    """Measure what a ratio costs. Raises RunError if the measurement is not of two models."""
    report = try_at(ratio)
    scored = report.models[-1]
    measured = report.nats if run.config.budget.perplexity else scored.kl
    if measured is None:
        raise RunError(f"ratio {ratio:g}: its evaluation has no figure to compare; start again")
    return Trial(
        ratio=ratio,
        predicted=predicted,
        measured=measured,
        perplexity=scored.perplexity,
        kl=scored.kl,
        kept=measured <= limit,
    )


def _nothing(run: Run, found: Found) -> RunError:
    """Return the error of a search in which no trial kept the budget."""
    budget = run.config.budget
    least = min(found.measured)
    ratio = ratio_at(least, budget.tolerance)
    measured = f"ratio {ratio:g} already takes {found.measured[least]:.4f} nats"
    remedy = (
        "allow more, or try finer ratios with --set budget.tolerance=N"
        if found.exceeded == 1
        else "allow more trials with --set budget.trials=N"
    )
    return RunError(f"{budget.option}: {measured}; {remedy}")


def _identity(run: Run) -> str:
    """Identify the budget, and the text if it is measured."""
    budget = run.config.budget
    return fingerprint([budget.model_dump(), asked_for(run) if budget.measured else None])


def _summary(ratio: float, found: BudgetResult) -> str:
    if not found.trials:
        return f"ratio {ratio:g}, {found.reached:,.0f} of {found.limit:,.0f}"
    said = "" if found.predicted is None else f" (predicted: {found.predicted:g})"
    return (
        f"ratio {ratio:g}{said}, {found.reached:.4f} of {found.limit:.4f} nats, "
        f"{count(len(found.trials), 'trial')}"
    )
