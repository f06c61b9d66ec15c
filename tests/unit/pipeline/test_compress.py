"""The order of a run, and what a search for a ratio leaves, without workers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pipeline import compress
from pipeline.stages.output import Output
from schemas.errors import ConfigError
from tests import reports
from workers.storage.store import Store


def test_a_run_that_goes_on_asks_no_disk_for_what_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = SimpleNamespace(compression=SimpleNamespace(bytes_after=7))
    found = {0.2: published, 0.4: None}
    asked: list[int] = []

    def refuse(disk: object, config: object, published: int = 0) -> None:
        asked.append(published)
        raise ConfigError("full")

    monkeypatch.setattr(compress, "find_published", lambda run, ratio: found[ratio])
    monkeypatch.setattr(compress, "require_disk", refuse)
    run: Any = SimpleNamespace(
        config=SimpleNamespace(ratio=tuple(found)), plan=SimpleNamespace(disk=0)
    )
    with pytest.raises(ConfigError, match="full"):
        compress._stages(run)
    assert asked == [7]


def test_weight_files_that_a_stopped_search_left_are_forgotten_but_those_it_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that it chose may be of a start that was stopped as it published them."""
    trials = [SimpleNamespace(ratio=ratio) for ratio in (0.2, 0.4, 0.3)]
    monkeypatch.setattr(compress, "keep_budget", lambda *_: (0.3, SimpleNamespace(trials=trials)))
    ids = SimpleNamespace(output=lambda config, ratio, *_: f"at-{ratio}")
    run: Any = mock.Mock(given_up={}, ids=ids)
    run.config.on_failure = "fail"
    assert compress._search(run)[0] == 0.3
    assert [call.args[0] for call in run.discard.call_args_list] == [
        "outputs/at-0.2",
        "outputs/at-0.4",
    ]


def test_the_peak_of_a_worker_is_the_highest_of_all_starts() -> None:
    done = reports.compression(reports.matrices(1))
    trained = reports.recovery(1.0, 0.5).model_copy(update={"peak_bytes": 6})
    made: Any = SimpleNamespace(
        outputs=[
            SimpleNamespace(compression=done),
            SimpleNamespace(compression=done.model_copy(update={"recovery": trained})),
        ]
    )
    assert compress._higher([5, 8], compress._trained(made)) == [6, 8]
    assert compress._higher([], [5, 8]) == [5, 8]
    made.outputs.pop()
    assert compress._higher([5, 8], compress._trained(made)) == [5, 8]


def test_factors_that_are_trained_anew_are_scored_anew(tmp_path: Path) -> None:
    """What is kept of the same identity is of other factors, which another start had trained."""
    ids = SimpleNamespace(output=lambda *_: "mine")
    run: Any = mock.Mock(given_up={}, ids=ids, store=Store(tmp_path))
    scores = tmp_path / "evaluations"
    scores.mkdir()
    for name in ("mine-0123", "yours-0123", "base-0123"):
        (scores / f"{name}.json").touch()
    Output(run, 0.2).start_over()
    assert sorted(path.stem for path in scores.iterdir()) == ["base-0123", "yours-0123"]
    run.discard.assert_called_once_with("outputs/mine")


def test_a_budget_is_searched_again_if_a_matrix_fails_at_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks of the others are then higher than those that were found to keep it."""
    run: Any = mock.Mock(given_up={})
    run.config.on_failure = "keep_dense"
    chosen, cut = iter((0.3, 0.4)), list[float]()

    def found(*_: Any) -> tuple[float, Any]:
        return next(chosen), SimpleNamespace(trials=[])

    def cut_at(_: Any, ratio: float) -> None:
        cut.append(ratio)
        run.given_up = {"q": "it is not finite"}

    monkeypatch.setattr(compress, "keep_budget", found)
    monkeypatch.setattr(compress, "_cut", cut_at)
    assert compress._search(run)[0] == 0.4
    assert cut == [0.3, 0.4]
