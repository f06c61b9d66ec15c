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
    observer.observe("backward", 0)

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
