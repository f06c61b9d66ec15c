"""The removal of neurons, against least squares on the rows themselves."""

import pytest
import torch
from torch import Tensor

from workers.truncation.neurons import Firing, _remove, firing
from workers.truncation.shrinkage import firing_more
from workers.truncation.two_sided import Metric

COUNT, OUT, TOKENS = 9, 5, 64


class Rows:
    """Neurons h (tokens, q) that depend on each other, W (m, q), and the metric G_s (m, m)."""

    def __init__(self, seed: int = 0, outputs: int = OUT) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.h = normal(TOKENS, 4) @ normal(4, COUNT) + 0.3 * normal(TOKENS, COUNT)
        self.weight, root = normal(outputs, COUNT), normal(outputs, outputs)
        self.metric = root @ root.T

    @property
    def moment(self) -> Tensor:
        return self.h.T @ self.h / TOKENS

    @property
    def problem(self) -> Firing:
        on_input = len(self.weight) > COUNT
        metric = self.weight.T @ self.metric @ self.weight if on_input else self.metric
        return firing(self.weight, self.moment, Metric(metric, on_input, None))

    def least(self, kept: list[int]) -> tuple[float, Tensor]:
        """The least loss of any W' that reads the kept neurons alone, and that W', by QR."""
        solved = torch.linalg.lstsq(self.h[:, kept], self.h @ self.weight.T).solution.T
        error = self.h @ self.weight.T - self.h[:, kept] @ solved.T
        return float(((error @ self.metric) * error).sum()) / TOKENS, solved


@pytest.mark.parametrize("block", [1, 3, 32])
@pytest.mark.parametrize("outputs", [OUT, COUNT + 3])
def test_each_step_removes_the_neuron_that_costs_least(
    outputs: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.truncation.neurons._BLOCK", block)
    rows = Rows(outputs=outputs)
    found, left = rows.problem.removal(), list(range(COUNT))
    assert not found.fallbacks
    assert len(found.order) == COUNT - 1
    for neuron, loss in zip(found.order.tolist(), found.losses.tolist(), strict=True):
        losses = {j: rows.least([k for k in left if k != j])[0] for j in left}
        assert losses[neuron] == pytest.approx(min(losses.values()), rel=1e-8)
        assert loss == pytest.approx(losses[neuron], rel=1e-8)
        left.remove(neuron)


@pytest.mark.parametrize("kept", [[0], [2, 5, 7], list(range(COUNT))])
def test_the_others_make_up_for_what_is_gone(kept: list[int]) -> None:
    rows, chosen = Rows(1), torch.tensor(kept)
    loss, solved = rows.least(kept)
    torch.testing.assert_close(rows.problem.compensated(rows.weight, chosen), solved)
    assert rows.problem.loss(chosen) == pytest.approx(loss, rel=1e-8, abs=1e-12)


def test_the_energy_is_the_loss_without_any() -> None:
    rows = Rows(2)
    whole = rows.h @ rows.weight.T
    expected = float(((whole @ rows.metric) * whole).sum()) / TOKENS
    assert rows.problem.energy() == pytest.approx(expected)


def test_neurons_that_never_fire_go_first_and_cost_nothing() -> None:
    rows = Rows(3)
    rows.h[:, [1, 6]] = 0.0
    found = rows.problem.removal()
    assert set(found.order[:2].tolist()) == {1, 6}
    assert found.losses[:2].tolist() == [0.0, 0.0]
    assert len(found.order) == COUNT - 1
    assert found.losses[2] > 0


@pytest.mark.parametrize("alive", [[2, 5], []])
def test_a_neuron_that_never_fires_and_stays_is_read_as_before(alive: list[int]) -> None:
    rows, dead = Rows(3), [1, 6]
    rows.h[:, dead if alive else range(COUNT)] = 0.0
    kept = torch.tensor(alive + dead)
    loss, solved = rows.least(alive)
    found = rows.problem.compensated(rows.weight, kept)
    torch.testing.assert_close(found, torch.cat((solved, rows.weight[:, dead]), 1))
    assert rows.problem.loss(kept) == pytest.approx(loss, rel=1e-8, abs=1e-12)


def test_neurons_that_depend_on_each_other_exactly_stay_and_are_recorded() -> None:
    rows = Rows(4)
    rows.h = rows.h[:3]
    found = rows.problem.removal()
    assert not len(found.order)
    assert found.fallbacks == ("moment of the neurons not positive definite: they all stay",)


def test_neurons_whose_loss_is_no_number_stay_and_are_recorded() -> None:
    problem = Rows(6).problem
    found = problem.removal()
    huge = problem._replace(read=problem.read * (1e308 / found.losses[3]).sqrt()).removal()
    sound = len(huge.order)
    assert 0 < sound < COUNT - 1
    assert bool(huge.losses.isfinite().all())
    assert len(set(huge.order.tolist())) == sound
    assert huge.fallbacks == (
        f"moment of the neurons nearly singular: the last {COUNT - sound} stay",
    )


def test_a_variance_that_rounding_made_negative_gains_nothing() -> None:
    precision = torch.eye(3, dtype=torch.float64)
    precision[1, 1] = -1e-9
    gone, costs, _, _ = _remove(torch.ones(2, 3, dtype=torch.float64), precision, 2)
    assert int(gone[0]) == 1
    assert not costs.isfinite().any()


def test_more_firing_adds_energy_and_takes_correlation() -> None:
    moment = Rows(5).moment
    found = firing_more(moment, 0.1, 0.02)
    floor = 0.02 * moment.diagonal().mean()
    off = ~torch.eye(COUNT, dtype=torch.bool)
    torch.testing.assert_close(found.diagonal(), moment.diagonal() + floor)
    torch.testing.assert_close(found[off], 0.9 * moment[off])
