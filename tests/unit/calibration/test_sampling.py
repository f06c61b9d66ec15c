"""Random errors at the logits, and the gradient of the hidden states, against autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.calibration.sampling import fisher_error, fisher_gradient, signs_of, wide_product

HIDDEN, VOCABULARY = 16, 50


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_norm() -> nn.Module:
    norm = nn.RMSNorm(HIDDEN, eps=1e-6)
    with torch.no_grad():
        norm.weight.add_(gaussian(3, HIDDEN), alpha=0.3)
    return norm


def tail(norm: nn.Module, head: Tensor) -> Callable[[Tensor], Tensor]:
    """Logits of hidden states, as the end of a model computes them."""
    return lambda hidden: wide_product(norm(hidden), head)


def autograd(hidden: Tensor, norm: nn.Module, head: Tensor) -> Tensor:
    """Gradient at the hidden states by autograd in float64, 256 tokens at a time."""
    exact, signs = hidden.double().requires_grad_(), signs_of(0, 0)
    logits = norm.double()(exact) @ head.double().T
    errors = [fisher_error(part.float(), signs) for part in torch.split(logits.detach(), 256)]
    (gradient,) = torch.autograd.grad(logits, exact, torch.cat(errors).double())
    return gradient


@pytest.mark.parametrize("tokens", [1, 7, 255, 256, 257, 600])
def test_it_is_the_gradient_of_the_error_at_the_logits(tokens: int) -> None:
    hidden, head = gaussian(1, tokens, HIDDEN), gaussian(2, VOCABULARY, HIDDEN)
    found = fisher_gradient(hidden, tail(random_norm(), head), signs_of(0, 0))
    expected = autograd(hidden, random_norm(), head)
    assert found.shape == hidden.shape
    # Float32 logits and softmax; one wrong sign would be an error of 1.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_gradient_is_of_the_dtype_of_the_hidden_states() -> None:
    hidden, head = gaussian(1, 9, HIDDEN).bfloat16(), gaussian(2, VOCABULARY, HIDDEN).bfloat16()
    found = fisher_gradient(hidden, tail(nn.Identity(), head), signs_of(0, 0))
    assert found.dtype == hidden.dtype


def test_errors_of_halves_are_of_float32_logits() -> None:
    """Logits near 100 are rounded to halves of one in bfloat16: other probabilities."""
    hidden = (30 * gaussian(1, 600, HIDDEN)).bfloat16()
    head = gaussian(2, VOCABULARY, HIDDEN).bfloat16()
    found = fisher_gradient(hidden, tail(nn.Identity(), head), signs_of(0, 0)).double()
    expected = autograd(hidden, nn.Identity(), head)
    signs = signs_of(0, 0)
    rounded = [fisher_error(part, signs) for part in torch.split((hidden @ head.T).float(), 256)]
    wrong = torch.cat(rounded).double() @ head.double() - expected
    # Where probabilities are right, what is left is the rounding of bfloat16.
    assert (found - expected).norm() < 1e-2 * expected.norm() < 0.1 * wrong.norm()


def test_tokens_do_not_see_one_another() -> None:
    hidden, head = gaussian(1, 9, HIDDEN), gaussian(2, VOCABULARY, HIDDEN)
    other = torch.cat((hidden[:5], gaussian(4, 4, HIDDEN)))
    one, two = (
        fisher_gradient(rows, tail(random_norm(), head), signs_of(0, 0)) for rows in (hidden, other)
    )
    torch.testing.assert_close(one[:5], two[:5])
    assert not torch.isclose(one[5:], two[5:]).any()


def draws_of(logits: Tensor, draws: int) -> Tensor:
    return fisher_error(logits.expand(draws, -1), signs_of(7, 0)).double()


def fisher(logits: Tensor) -> Tensor:
    probabilities = logits.double().softmax(-1)
    return probabilities.diag() - probabilities.outer(probabilities)


def test_mean_and_second_moment_are_those_of_drawn_labels() -> None:
    """Of 40,000 draws: 0 and diag(p) - p pᵀ, within 5 standard errors of every entry."""
    draws = 40_000
    logits = torch.tensor([1.0, 0.0, 0.3, -1.0, 2.0, -8.0])
    errors, exact = draws_of(logits, draws), fisher(logits)
    assert bool((errors.mean(0).abs() < 5 * (exact.diag() / draws).sqrt() + 1e-9).all())
    products = errors[:, :, None] * errors[:, None, :]
    bound = 5 * (products.std(0) / draws**0.5)
    assert bool(((products.mean(0) - exact).abs() < bound + 1e-9).all())


def test_moments_have_less_noise_than_those_of_drawn_labels() -> None:
    """If the model is nearly sure, a label says so 19 of 20 times, and else far too much."""
    draws, logits = 20_000, torch.tensor([0.95, 0.03, 0.02]).log()
    labels = torch.multinomial(
        logits.exp(), draws, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    drawn = nn.functional.one_hot(labels, 3).double() - logits.double().softmax(-1)
    noise, of_labels = (rows.square().var(0) for rows in (draws_of(logits, draws), drawn))
    assert bool((noise < 0.2 * of_labels).all())


def test_the_error_sums_to_zero() -> None:
    """A constant that is added to all logits changes no probability."""
    error = fisher_error(3 * gaussian(5, 50, VOCABULARY), signs_of(0, 0))
    assert float(error.sum(-1).abs().max()) < 1e-5


def test_signs_depend_on_seed_and_sequence_alone() -> None:
    logits = gaussian(5, 10, VOCABULARY)
    first = fisher_error(logits, signs_of(3, 5))
    torch.manual_seed(2)
    assert torch.equal(fisher_error(logits, signs_of(3, 5)), first)


@pytest.mark.parametrize(("seed", "sequence"), [(0, 1), (1, 0), (1, 1), (2**31, 0)])
def test_signs_differ_by_seed_and_sequence(seed: int, sequence: int) -> None:
    logits = gaussian(5, 10, VOCABULARY)
    other = fisher_error(logits, signs_of(seed, sequence))
    assert not torch.equal(other, fisher_error(logits, signs_of(0, 0)))
