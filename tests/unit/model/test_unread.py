"""A linear layer whose output is not computed, against the same layer as it is."""

import pytest
import torch
from torch import Tensor, nn

from workers.model.unread import unread


def gradients(linear: nn.Linear, rows: Tensor, skip: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The output, the gradient of the rows, and what a hook on the layer sees."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, at_input: tuple[Tensor, ...], at_output: tuple[Tensor, ...]) -> None:
        seen.extend((at_input[0], at_output[0]))

    handle = linear.register_full_backward_hook(hook)
    rows = rows.clone().requires_grad_()
    torch.manual_seed(1)
    with unread([linear] if skip else []):
        output = linear(rows)
    (gradient,) = torch.autograd.grad(output, rows, torch.randn_like(output))
    handle.remove()
    return output, gradient, seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_product(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, bias, dtype=dtype).requires_grad_(False)
    rows = torch.randn(3, 17, 48, dtype=dtype)
    output, gradient, seen = gradients(linear, rows, skip=False)
    unread_output, same, seen_too = gradients(linear, rows, skip=True)
    assert not unread_output.any()
    assert unread_output.shape == output.shape
    assert torch.equal(gradient, same)
    assert all(map(torch.equal, seen, seen_too))
    assert torch.equal(linear(rows), output.detach())  # and afterwards it computes again
