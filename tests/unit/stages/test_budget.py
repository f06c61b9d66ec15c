"""The search of a budget, on spectra of a tiny model and with losses that nobody has to measure."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.plan.budget import SUPPOSED, supposed
from pipeline.progress import Progress
from pipeline.request.inputs import EvaluationText
from pipeline.stages import budget as stage
from pipeline.stages.budget import keep_budget, published_ratio
from pipeline.stages.weight_files import total_bytes
from schemas.errors import ConfigError, RunError
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.result.budget import BudgetResult
from schemas.result.evaluation import EvaluationReport
from schemas.result.output import SpectrumFacts
from schemas.run.identity import Identities
from tests.reports import evaluation
from workers.allocator import RankAllocator
from workers.model.inspection import inspect
from workers.storage.keys import spectrum_key
from workers.storage.store import Store
from workers.storage.tensorfile import entries

IDS = Identities(forward="f", backward="g", bases="b", factors="f", neurons="n")


class Runs(SimpleNamespace):
    """A run whose allocator is in this process."""

    allocator: RankAllocator
    spec: ModelSpec
    config: RunConfig


@pytest.fixture
def start(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    monkeypatch.setattr(stage, "gather", lambda *_: None)
    monkeypatch.setattr(stage, "ranks_at", lambda run, ratio: run.allocator.allocate(ratio))
    spec = inspect(model)

    def begin(method: str = "two-sided", **budget: Any) -> Runs:
        asked = {"model": str(model), "output": tmp_path / "out", "method": method}
        config = RunConfig.model_validate(asked | {"budget": budget})
        store = Store(config.run_folder)
        nats = 0.5 if method == "two-sided" else None
        facts = SpectrumFacts(
            through="none", nats=nats, tokens=9, shrinkage=None, fallbacks=(), remarks=()
        )
        for at, matrix in enumerate(spec.matrices):
            values = torch.logspace(-1, -4 - at % 3, matrix.small, dtype=torch.float64)
            content = entries({"eigenvalues": values})
            key = spectrum_key(IDS, matrix.name)
            store.commit(key, content, facts.model_dump(mode="json"))
        allocator = RankAllocator(config)
        allocator.gather(spec.matrices, IDS)
        text = EvaluationText("text.txt", torch.tensor([[1, 2]]))
        return Runs(
            config=config,
            spec=spec,
            allocator=allocator,
            given_up={},
            progress=Progress(),
            inputs=SimpleNamespace(evaluation=text),
        )

    return begin


def never(_: float) -> EvaluationReport:
    raise AssertionError("a size needs no trial")


def measured(kl: float) -> EvaluationReport:
    """A report of a KL, and of a loss that is as much more than the base's."""
    report = evaluation()
    before, after = report.models
    made = after.model_copy(update={"kl": kl, "mean_nll": before.mean_nll + kl})
    return report.model_copy(update={"models": (before, made)})


def found_by(run: Any, try_at: Any = never) -> tuple[float, BudgetResult]:
    return keep_budget(run, try_at)


@pytest.mark.parametrize("method", ["two-sided", "svd-llm"])
def test_the_lowest_ratio_within_a_size(start: Callable[..., Runs], method: str) -> None:
    run = start(method, size=1)
    factors = run.config.factors
    sizes = {
        ratio: total_bytes(run.spec, factors, run.allocator.allocate(ratio))
        for ratio in (0.15, 0.4)
    }
    for limit in (sizes[0.15] - 1, sizes[0.4]):
        run = start(method, size=limit)
        ratio, found = found_by(run)
        assert found.reached == total_bytes(run.spec, factors, run.allocator.allocate(ratio))
        assert found.reached <= limit
        less = run.allocator.allocate(ratio - 1e-5)
        assert total_bytes(run.spec, factors, less) > limit
        assert not found.trials


def test_the_lowest_ratio_within_a_number_of_parameters(start: Callable[..., Runs]) -> None:
    whole = sum(math.prod(tensor.shape) for tensor in start(size=1).spec.tensors)
    run = start(parameters=whole - 5000)
    ratio, found = found_by(run)
    assert found.reached <= whole - 5000
    less = run.allocator.allocate(ratio - 1e-5)
    assert whole - less.dense_parameters + less.parameters > whole - 5000


@pytest.mark.slow
def test_the_highest_ratio_within_a_loss(start: Callable[..., Runs]) -> None:
    tried = list[float]()
    run = start(kl=0.05, tolerance=0.01)

    def try_at(ratio: float) -> EvaluationReport:
        tried.append(ratio)
        return measured(1.7 * (run.allocator.allocate(ratio).nats or 0.0))

    ratio, found = found_by(run, try_at)
    truth = max(
        n for n in range(1, 90) if 1.7 * (run.allocator.allocate(n / 100).nats or 9) <= 0.05
    )
    assert round(ratio * 100) == truth
    assert [trial.ratio for trial in found.trials] == tried
    assert found.predicted == tried[0] > ratio
    assert found.reached <= found.limit == 0.05
    assert [trial.kept for trial in found.trials] == [m.measured <= 0.05 for m in found.trials]


def test_perplexity_is_limited_by_its_logarithm(start: Callable[..., Runs]) -> None:
    run = start("svd-llm", perplexity=0.1, tolerance=0.05, trials=20)
    ratio, found = found_by(run, lambda ratio: measured(ratio / 4))
    assert found.limit == pytest.approx(math.log(1.1))
    assert ratio == 0.35  # the last multiple of 0.05 below 4 log 1.1 = 0.38, but for its noise
    assert found.predicted is None  # without gradients


def test_what_no_trial_keeps_is_said(start: Callable[..., Runs]) -> None:
    with pytest.raises(RunError, match=r"0.01 already takes 5.0000 nats; .* budget.tolerance"):
        found_by(start(kl=0.05, tolerance=0.01, trials=30), lambda _: measured(5.0))
    with pytest.raises(RunError, match=r"budget.trials"):
        found_by(start(kl=0.05, tolerance=0.01, trials=1), lambda _: measured(5.0))


def test_nothing_is_published_before(start: Callable[..., Any]) -> None:
    assert published_ratio(start(size=1)) == ()


def test_a_plan_supposes_ratios(start: Callable[..., Runs]) -> None:
    run = start(kl=0.1, trials=3)
    assert supposed(run.config, run.spec).ratio == (SUPPOSED,) * 3
    whole = sum(math.prod(tensor.shape) for tensor in run.spec.tensors)
    run = start(parameters=whole - run.spec.targeted // 4)
    assert supposed(run.config, run.spec).ratio == pytest.approx((0.25,), abs=1e-3)


def test_what_has_a_ratio_of_its_own_is_no_part_of_the_search(start: Callable[..., Runs]) -> None:
    spec = start(size=1).spec
    whole = sum(math.prod(tensor.shape) for tensor in spec.tensors)
    own = sum(matrix.size for matrix in spec.matrices if "mlp" in matrix.name)

    def ratio(removed: float, **by: float) -> float:
        config = start(parameters=whole - round(removed)).config
        [found] = supposed(config.model_copy(update={"ratio_by": by}), spec).ratio
        return found

    rest = spec.targeted - own
    assert ratio(0.5 * own + 0.2 * rest, mlp=0.5) == pytest.approx(0.2, abs=1e-3)
    assert ratio(0.3 * own, mlp=0.5) == 0  # removes more than has to be
    with pytest.raises(ConfigError, match="the most that can go leaves"):
        ratio(0.2 * own + rest, mlp=0.2)
    with pytest.raises(ConfigError, match="none is left to find"):
        ratio(0.2 * own, mlp=0.2, self_attn=0.2)
