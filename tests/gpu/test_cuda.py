"""The CUDA paths, if there is a device: the same numbers as on the CPU, to rounding."""

from pathlib import Path

import pytest
import torch

from pipeline.plan.footprint import SUM_BYTES
from schemas.run.moments import Pass, taps
from tests.low_rank import GREEDY, PROMPTS, make_checkpoint
from tests.models import tiny_model
from workers.calibration.moments import Moment, MomentAccumulator, _add_products, add_exactly
from workers.model.inspection import inspect
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step
from workers.truncation.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def moments(folder: Path, device: str, dtype: torch.dtype) -> dict[str, Moment]:
    """All moments of a tiny model from one forward and one backward stream."""
    spec = inspect(folder)
    decoder = Decoder(folder, spec, dtype, torch.device(device))
    found = taps(spec.matrices, "fisher", gradients=True)
    shard = Shard(decoder, range(spec.layers), taps=found)
    tokens = torch.arange(64).view(2, 32).to(device)
    shard.forward(tokens, Step(0, 0))
    hidden = shard.forward(tokens, Step(0, 0), "gradient")
    gradient = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    shard.backward(gradient.to(hidden), Step(0, 0))  # that of the loss has other signs on CUDA
    directions: tuple[Pass, ...] = ("forward", "backward")
    return {tap.name: sums.mean(tap.name) for d in directions for tap, sums in shard.take_sums(d)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_moments_equal_those_of_the_cpu(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    folder = tiny_model(tmp_path / "model")
    on_cpu = moments(folder, "cpu", torch.float32)
    on_gpu = moments(folder, "cuda", dtype)
    for name in on_cpu:
        expected, found = on_cpu[name].matrix, on_gpu[name].matrix
        assert expected is not None
        assert found is not None
        assert (found.cpu() - expected).norm() <= tolerance * expected.norm(), name


def test_basis_equals_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=generator, dtype=torch.float64)
    rows = torch.randn(200, 24, generator=generator, dtype=torch.float64)
    gram = rows.T @ rows / 200
    spectra = []
    for device in ("cpu", "cuda"):
        moment = Moment(gram.to(device), float(gram.trace()), 200)
        problem = Problem("fisher", weight.to(device), moment, moment, 0.1)
        basis = problem.basis()
        spectra.append(basis.eigenvalues.cpu())
        assert problem.loss(basis, 8) == pytest.approx(float(basis.eigenvalues[8:].sum()), rel=1e-6)
    assert torch.allclose(spectra[0], spectra[1], rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_halves_are_exact_and_summed_in_float32(dtype: torch.dtype) -> None:
    """The tensor cores' sum differs from the float32 one by the order of its additions alone."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(512, 96, generator=generator).to(dtype) for _ in range(4)]
    accumulator = MomentAccumulator((96, 96))
    for index, part in enumerate(parts):
        accumulator.add(part.cuda(), segment=index // 2)
    found = accumulator.sums().mean("halves").matrix
    rows = torch.cat(parts).double()
    assert found is not None
    assert (found.double() - rows.T @ rows / len(rows)).abs().max() < 1e-5


def test_sums_on_the_host_are_exact() -> None:
    """Three values of very different size, in either order: the residue keeps what is lost."""
    values = [torch.full((64, 64), value, device="cuda") for value in (1e30, 1.0, -1e30)]
    for order in (values, values[::-1]):
        high = torch.zeros(64, 64, dtype=torch.float64, pin_memory=True)
        low = torch.zeros(64, 64, pin_memory=True)
        for value in order:
            add_exactly(high, low, value)
        assert torch.equal(high + low, torch.ones(64, 64, dtype=torch.float64))


def test_products_of_halves_take_no_second_buffer() -> None:
    """What is added to the sum of one micro-batch goes into it."""
    rows = torch.randn(8, 8192, device="cuda", dtype=torch.bfloat16)
    total = _add_products(None, rows)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert _add_products(total, rows).data_ptr() == total.data_ptr()
    assert torch.cuda.max_memory_allocated() - before < total.nbytes
    assert torch.allclose(total, 2 * (rows.float().T @ rows.float()), rtol=1e-3, atol=1e-3)


def test_pinned_sums_take_what_they_hold() -> None:
    """302 and 151 MB, which in one piece would be rounded up to 537 and 268."""
    notes: list[str] = []
    sums = MomentAccumulator((6144, 6144), notes.append)
    before = torch.cuda.memory.host_memory_stats()["allocated_bytes.current"]
    sums.add(torch.ones(1, 6144, device="cuda", dtype=torch.bfloat16), segment=0)
    sums.add(torch.ones(1, 6144, device="cuda", dtype=torch.bfloat16), segment=1)
    taken = torch.cuda.memory.host_memory_stats()["allocated_bytes.current"] - before
    assert notes == []
    assert taken <= 1.02 * SUM_BYTES * 6144**2
    assert sums.sums().mean("ones").trace == 6144


def test_a_latent_cache_lies_with_its_layers(tmp_path: Path) -> None:
    """Of a model whose layers are on several devices; the first one's is not the rest's."""
    accelerate = pytest.importorskip("accelerate")
    fields = {"num_key_value_heads": 4, "tie_word_embeddings": False}
    model = make_checkpoint(tmp_path / "c", "qwen2", ("plain",), **fields).load()
    expected = model.generate(**PROMPTS, **GREEDY)
    names = ("embed_tokens", "rotary_emb", "layers.1", "norm")
    places = {f"model.{name}": "cpu" for name in names} | {"lm_head": "cpu"}
    accelerate.dispatch_model(model, {**places, "model.layers.0": 0}, main_device="cpu")
    cache = model.latent_cache()
    assert torch.equal(model.generate(**PROMPTS, **GREEDY, past_key_values=cache), expected)
    assert [layer.keys.device.type for layer in cache.layers] == ["cuda", "cpu"]
