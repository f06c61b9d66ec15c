"""The search for the largest ratio that keeps a budget, on curves like those that were measured."""

from collections.abc import Callable

import pytest

from workers.allocation.search import last, search

MOST = 180  # steps of 0.005


def predicted(at: int) -> float:
    """Nats like those of SmolLM2: 0.13 at 20 %, 0.5 at 40 %."""
    share = at / 200
    return float(2.2 * share**1.8 / (1 - share))


def biased(power: float, factor: float) -> Callable[[int], float]:
    """A loss that the prediction misses by a factor, and more at high ratios."""
    return lambda at: factor * predicted(at) * (1 + at / 200) ** power


CURVES: dict[str, Callable[[int], float]] = {
    "as predicted": predicted,
    "twice": biased(0, 2.0),
    "a third": biased(0, 1 / 3),
    "worse and worse": biased(4, 1.1),
    "negative at first": lambda at: predicted(at) - 0.02,
    "nothing, then a cliff": lambda at: 1e-4 if at < 90 else 5.0,
}


@pytest.mark.parametrize("limit", [0.01, 0.0953, 0.6])
@pytest.mark.parametrize("curve", CURVES)
def test_it_finds_the_last_number_within_the_limit(curve: str, limit: float) -> None:
    measure = CURVES[curve]
    found = search(predicted, measure, limit, MOST, trials=20)
    truth = last(lambda at: measure(at) <= limit, 0, MOST + 1)
    assert found.best in (truth, truth - 1)  # the last step may be left to the prediction
    assert all(loss == measure(at) for at, loss in found.measured.items())
    assert not found.best or found.measured[found.best] <= limit


@pytest.mark.parametrize("limit", [0.03, 0.0953, 0.3])
@pytest.mark.parametrize("curve", ["as predicted", "twice", "a third", "worse and worse"])
def test_a_few_trials_do_where_the_prediction_is_about_right(curve: str, limit: float) -> None:
    found = search(predicted, CURVES[curve], limit, MOST, trials=4)
    assert found == search(predicted, CURVES[curve], limit, MOST, trials=20)


def test_without_a_trial_left_it_says_the_best_of_those_made() -> None:
    measure = biased(4, 1.1)
    found = search(predicted, measure, 0.3, MOST, trials=1)
    [(at, loss)] = found.measured.items()
    assert at == found.predicted
    assert loss > 0.3
    assert (found.best, found.exceeded) == (0, at)


def test_nothing_keeps_a_limit_that_the_first_step_exceeds() -> None:
    found = search(predicted, lambda at: 1.0, 0.01, MOST, trials=9)
    assert found.best == 0
    assert found.exceeded == 1


def test_everything_keeps_a_limit_that_the_last_step_is_within() -> None:
    found = search(predicted, lambda at: 0.1 * predicted(at), 1e9, MOST, trials=3)
    assert (found.best, found.exceeded, list(found.measured)) == (MOST, None, [MOST])
