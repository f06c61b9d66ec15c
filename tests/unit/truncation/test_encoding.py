"""How factors are stored."""

import torch

from workers.truncation.encoding import plain_factors


def test_factors_of_any_size_are_finite_in_float16() -> None:
    """As those of tiny gradients, whose inverse is in A; a rank of zeros stays zero."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    a[:, 7], b[7] = 0, 0
    exact = a @ b
    stored = plain_factors(a * 1e7, b / 1e7, torch.float16)
    up, down = stored.tensors["up.weight"].double(), stored.tensors["down.weight"].double()
    assert stored.rounding < 1e-3
    torch.testing.assert_close(up @ down, exact, rtol=0, atol=1e-2)
    sizes = up.abs().amax(0)[:7] / down.abs().amax(1)[:7]
    assert sizes.log2().abs().max() <= 1.01
    assert not up[:, 7].any()
    for dtype in (torch.float16, torch.bfloat16):
        as_is = plain_factors(a * 16, b, dtype)
        assert torch.equal(as_is.tensors["up.weight"], (a * 16).to(dtype))
