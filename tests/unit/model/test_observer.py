"""What an observer keeps of a backward pass."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from schemas.run.moments import Tap
from workers.model.observer import Observer


def test_a_pass_that_lacked_memory_leaves_no_gradient_behind() -> None:
    module = nn.Linear(3, 5)
    tap = Tap(name="tap", layer=0, module="m", direction="backward", side="input", size=3)
    observer = Observer(lambda _: module, [tap], adapted=lambda _: None)
    observer.observe("backward", 0, sequences=2)

    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError

    kept = []
    for fails in (True, False):
        observer.seen = set()
        output = module(torch.ones(2, 3, requires_grad=True))
        gradient = torch.ones(2, 5)
        kept.append(weakref.ref(gradient))
        if fails:
            output.register_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                output.backward(gradient)
        else:
            output.backward(gradient)
    del gradient, output
    assert [one() for one in kept] == [None, None]
    [(_, sums)] = observer.take_sums("backward")
    assert sums.tokens == 2


@pytest.mark.parametrize("flat", [False, True])
def test_each_sequence_has_a_weight_gradient_of_its_own(flat: bool) -> None:
    """Also if a layer flattens them, as OPT does: a square of sums is no sum of squares."""
    module = nn.Linear(3, 5)
    tap = Tap(name="tap", layer=0, module="m", direction="backward", side="input", size=3)
    tap = tap.model_copy(update={"of": "weight-gradient"})
    observer = Observer(lambda _: module, [tap], adapted=lambda _: None)
    observer.observe("backward", 0, sequences=2)
    inputs, gradients = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    shape = (8, -1) if flat else (2, 4, -1)
    module(inputs.reshape(shape).requires_grad_()).backward(gradients.reshape(shape))
    [(_, sums)] = observer.take_sums("backward")
    each = gradients.mT @ inputs
    expected = each.square().sum((0, 1)) / (2 * 5)  # the diagonal, a mean over rows
    torch.testing.assert_close(sums.mean("tap").matrix, expected[None])


@pytest.mark.parametrize("rows", [None, (1, 4)])
def test_a_large_bias_leaves_no_noise_in_the_moment_of_an_output(
    rows: tuple[int, int] | None,
) -> None:
    """Outputs in bfloat16 are rounded to the size of the bias, here to whole numbers."""
    module = nn.Linear(3, 5, dtype=torch.bfloat16)
    nn.init.constant_(module.bias, 200.0)
    size = 5 if rows is None else rows[1] - rows[0]
    tap = Tap(name="tap", layer=0, module="m", direction="forward", side="output", size=size)
    tap = tap.model_copy(update={"rows": rows})
    observer = Observer(lambda _: module, [tap], adapted=lambda _: None)
    observer.observe("forward", 0, sequences=1)
    inputs = torch.randn(4, 3, dtype=torch.bfloat16)
    with torch.no_grad():
        module(inputs)
        product = (inputs @ module.weight.T).float()[:, slice(*rows or (None,))]
    [(_, sums)] = observer.take_sums("forward")
    torch.testing.assert_close(sums.mean("tap").matrix, product.T @ product / 4)
