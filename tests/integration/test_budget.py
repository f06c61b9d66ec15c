"""A budget instead of a ratio: found from one calibration, and by as few trials as it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.compress import compress
from pipeline.stream.comparison import compare
from schemas.errors import ConfigError, RunError
from schemas.request.config import RunConfig
from schemas.request.groups import AllocationConfig, EvaluationTextConfig
from schemas.result.manifest import OutputResult
from schemas.run.record import Activity
from tests.integration.support import ask, item_attempts, kl
from tests.items import local
from tests.models import tiny_model
from workers.checkpoint.verify import require, verify_checkpoint

STEP = 0.01
STATISTICS = ("moments", "bases", "spectra")


@pytest.fixture(scope="module")
def at_30(text: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> OutputResult:
    """A checkpoint at a ratio, whose run directory serves every budget."""
    folder = tmp_path_factory.mktemp("budget")
    evaluation = EvaluationTextConfig(text=str(text), sequence_length=64, windows=6)
    config = ask(tiny_model(folder / "m"), text, folder / "o", evaluation=evaluation)
    [output] = compress(config).outputs
    return output


@pytest.fixture
def within(at_30: OutputResult, text: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """A request from the same calibration, within a budget or at a ratio."""
    folder = local(at_30.path)

    def request(name: str, ratio: tuple[float, ...] = (), **budget: Any) -> RunConfig:
        measured = {"tolerance": STEP} if budget.keys() - {"size", "parameters"} else {}
        return ask(
            folder.parent / "m",
            text,
            tmp_path / name,
            ratio=ratio,
            run_dir=folder.parent / "o.run",
            evaluation=EvaluationTextConfig(text=str(text), sequence_length=64, windows=6),
            budget=measured | budget,
        )

    return request


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the workers score, in order; a second one fails once, as if the driver was killed."""
    found: list[str] = []

    def once(*given: Any) -> Any:
        found.append(given[1].name)
        if len(found) == 2:
            raise RunError("stopped")
        return compare(*given)

    monkeypatch.setattr("pipeline.stages.evaluate.compare", once)
    return found


def spent(request: RunConfig) -> set[str]:
    """The stages that the journal of the last start names."""
    journal = local(request.run_folder) / "progress.json"
    return set(Activity.model_validate_json(journal.read_bytes()).spent)


def test_the_highest_ratio_within_a_loss(
    at_30: OutputResult, within: Callable[..., RunConfig], scored: list[str]
) -> None:
    limit = kl(at_30) * 3
    request = within("kl", kl=limit)
    before = item_attempts(request.run_folder, *STATISTICS)
    with pytest.raises(RunError, match="stopped"):
        compress(request)
    [output] = compress(request).outputs

    found = output.compression.budget
    assert found
    assert found.trials
    assert len(scored) == len(found.trials) + 1  # no trial twice but the one that failed
    assert output.compression.ratio >= 0.3
    assert kl(output) == found.reached <= found.limit == limit
    [next_higher] = compress(within("next", (output.ratio + STEP,))).outputs
    assert kl(next_higher) > 0.9 * limit  # it need not be tried if it is too much by prediction
    assert {round(trial.ratio / STEP, 6) % 1 for trial in found.trials} == {0}
    assert all(trial.kept == (trial.measured <= limit) for trial in found.trials)

    assert item_attempts(request.run_folder, *STATISTICS) == before
    assert not {"calibrate forward", "calibrate backward"} & spent(request)
    folder = local(output.path)
    require(verify_checkpoint(folder, published=True), folder)
    page = (folder / "report.html").read_text()
    assert "The budget, and what was tried" in page
    assert "--max-kl" in (folder / "README.md").read_text()
    assert not list((local(request.run_folder) / "records/outputs").rglob("*.json"))


def test_what_is_published_for_a_budget_is_there(
    at_30: OutputResult, within: Callable[..., RunConfig]
) -> None:
    request = within("again", perplexity=0.02)
    [output] = compress(request).outputs
    assert output.evaluation
    base, made = output.evaluation.models
    assert made.perplexity <= 1.02 * base.perplexity
    assert compress(request).outputs[0].compression == output.compression
    with pytest.raises(ConfigError, match=r"not made for --max-kl 0\.2"):
        compress(within("again", kl=0.2))


def test_the_lowest_ratio_within_a_size(
    at_30: OutputResult, within: Callable[..., RunConfig]
) -> None:
    after = at_30.compression.bytes_after
    [output] = compress(within("size", size=after)).outputs
    found = output.compression.budget
    assert found
    folder = local(output.path)
    assert found.reached == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert after - 4 * 200 < found.reached <= after  # a rank less of one matrix
    assert not found.trials
    assert json.loads((folder / "compression.json").read_text())["ratio"] == output.ratio


def test_a_tied_head_that_is_stored_counts_once(
    local_ray: None, text: Path, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    once = sum(tensor.numel() for tensor in tensors.values())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, weights, {"format": "pt"})
    limit = once * 9 // 10
    budget = {"parameters": limit}
    ranks = AllocationConfig(method="loss-aware-ranks")  # whose steps are finer
    asked = ask(base, text, tmp_path / "o", ratio=(), budget=budget, allocation=ranks)
    [output] = compress(asked).outputs
    done = output.compression
    assert done.parameters_before == once
    assert done.budget
    assert done.budget.reached == done.parameters_after
    assert limit - 200 < done.parameters_after <= limit


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"size": "1GB"}, "keeps it as it is; ask for less"),
        ({"parameters": "1k"}, "the most that can go leaves"),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_any_work(
    at_30: OutputResult, within: Callable[..., RunConfig], budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(within("refused", **budget))


def test_a_loss_needs_a_text(at_30: OutputResult, within: Callable[..., RunConfig]) -> None:
    request = within("no-text", kl=0.1)
    without = request.evaluation.model_copy(update={"text": "none"})
    with pytest.raises(ConfigError, match="name one with --evaluate"):
        compress(request.model_copy(update={"evaluation": without}))
