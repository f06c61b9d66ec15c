"""Labels drawn from the model, and the gradient of their loss, against autograd."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from workers.calibration.sampling import fisher_gradient, label_noise, wide_product

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


def sampled(logits: Tensor, noise: Tensor) -> Tensor:
    """The first label whose cumulative probability is above the noise."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return (cumulative <= noise[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


def autograd(hidden: Tensor, norm: nn.Module, head: Tensor, noise: Tensor) -> Tensor:
    """Gradient of the summed cross entropy, by autograd in float64."""
    exact = hidden.double().requires_grad_()
    logits = norm.double()(exact) @ head.double().T
    labels = sampled(logits.detach(), noise)
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, exact)
    return gradient


@pytest.mark.parametrize("tokens", [1, 7, 255, 256, 257, 600])
def test_it_is_the_gradient_of_the_loss_of_the_sampled_labels(tokens: int) -> None:
    hidden, head = gaussian(1, tokens, HIDDEN), gaussian(2, VOCABULARY, HIDDEN)
    noise = label_noise(0, 0, tokens)
    found = fisher_gradient(hidden, tail(random_norm(), head), noise)
    expected = autograd(hidden, random_norm(), head, noise)
    assert found.shape == hidden.shape
    # Float32 logits and softmax; one wrong label would be an error of 1.
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_gradient_is_of_the_dtype_of_the_hidden_states() -> None:
    hidden, head = gaussian(1, 9, HIDDEN).bfloat16(), gaussian(2, VOCABULARY, HIDDEN).bfloat16()
    found = fisher_gradient(hidden, tail(nn.Identity(), head), label_noise(0, 0, 9))
    assert found.dtype == hidden.dtype


def test_labels_of_halves_are_drawn_from_float32_logits() -> None:
    """Logits near 100 are rounded to halves of one in bfloat16, which would flip labels."""
    hidden = (30 * gaussian(1, 600, HIDDEN)).bfloat16()
    head = gaussian(2, VOCABULARY, HIDDEN).bfloat16()
    noise = label_noise(0, 0, 600)
    exact = sampled(hidden.float() @ head.float().T, noise)
    assert (sampled((hidden @ head.T).float(), noise) != exact).any()
    found = fisher_gradient(hidden, tail(nn.Identity(), head), noise).double()
    expected = autograd(hidden, nn.Identity(), head, noise)
    # Where label and its probability are right, what is left is the rounding of bfloat16.
    assert (found - expected).abs().max() < 2e-2 * head.abs().max()


def test_tokens_do_not_see_one_another() -> None:
    hidden, head = gaussian(1, 300, HIDDEN), gaussian(2, VOCABULARY, HIDDEN)
    noise = label_noise(0, 0, 300)
    together = fisher_gradient(hidden, tail(random_norm(), head), noise)
    alone = torch.cat(
        [
            fisher_gradient(hidden[i : i + 1], tail(random_norm(), head), noise[i : i + 1])
            for i in range(0, 300, 37)
        ]
    )
    torch.testing.assert_close(together[::37], alone, rtol=1e-5, atol=1e-5)


def test_label_frequencies_follow_the_softmax() -> None:
    """40,000 labels of one distribution: chi-squared below its 1 - 1e-6 quantile."""
    draws, labels = 40_000, 8
    logits = torch.linspace(-2, 1.5, labels)
    probabilities = logits.double().softmax(-1)
    hidden = logits.expand(draws, labels)
    head = tail(nn.Identity(), torch.eye(labels))
    gradient = fisher_gradient(hidden, head, label_noise(7, 0, draws))
    counts = (probabilities.float() - gradient).round().sum(0).double()  # softmax - onehot
    assert float(counts.sum()) == draws
    expected = draws * probabilities
    chi_squared = float(((counts - expected).square() / expected).sum())
    assert chi_squared < 41.0  # 7 degrees of freedom


def test_the_mean_gradient_vanishes() -> None:
    """E[softmax - onehot] = 0 where labels come from the model itself: 5 standard errors."""
    draws, labels = 20_000, 5
    logits = torch.tensor([1.0, 0.0, 0.3, -1.0, 2.0])
    hidden = logits.expand(draws, labels)
    head = tail(nn.Identity(), torch.eye(labels))
    gradient = fisher_gradient(hidden, head, label_noise(1, 2, draws))
    probabilities = logits.softmax(-1)
    error = (probabilities * (1 - probabilities) / draws).sqrt()
    assert bool((gradient.mean(0).abs() < 5 * error).all())


@pytest.mark.parametrize("noise", [0.0, math.nextafter(1.0, 0.0)])
def test_the_ends_of_the_noise_are_labels_of_some_probability(noise: float) -> None:
    logits = torch.tensor([[-1e4, 0.0, 0.0, -1e4]])
    gradient = fisher_gradient(
        logits, tail(nn.Identity(), torch.eye(4)), torch.tensor([noise], dtype=torch.float64)
    )
    [label] = (gradient < 0).nonzero()[:, 1].tolist()
    assert label == (1 if noise == 0.0 else 2)


def test_noise_depends_on_seed_sequence_and_position_alone() -> None:
    torch.manual_seed(1)
    first = label_noise(3, 5, 10)
    torch.manual_seed(2)
    assert torch.equal(label_noise(3, 5, 10), first)


def test_noise_of_a_position_does_not_depend_on_the_length() -> None:
    assert torch.equal(label_noise(3, 5, 100)[:10], label_noise(3, 5, 10))


@pytest.mark.parametrize(("seed", "sequence"), [(0, 1), (1, 0), (1, 1), (2**31, 0)])
def test_noise_differs_by_seed_and_sequence(seed: int, sequence: int) -> None:
    assert not torch.equal(label_noise(seed, sequence, 10), label_noise(0, 0, 10))


def test_noise_fills_the_unit_interval() -> None:
    noise = torch.cat([label_noise(0, sequence, 100) for sequence in range(200)])
    assert 0 <= float(noise.min()) < 1e-3
    assert 1 - 1e-3 < float(noise.max()) < 1
    # The mean of 20,000 uniform numbers: 5 standard errors.
    assert abs(float(noise.mean()) - 0.5) < 5 / math.sqrt(12 * len(noise))
