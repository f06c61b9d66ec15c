"""What a device cannot do, the host does and says so; what it cannot do is an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from schemas.errors import NumericsError
from schemas.result.output import MatrixResult
from tests.moments import IDS, make_run
from workers.compressor import left_dense
from workers.storage.spectra import read_spectrum
from workers.truncation.basis import Basis
from workers.truncation.problem import Problem

DEVICE = torch.device("cpu", 0)  # stands for a device that is not the host
NOTE = "too large for the memory of the cpu device: computed on the host"


def lack_memory_once(monkeypatch: pytest.MonkeyPatch, method: str) -> list[torch.device]:
    """Let a method of `Problem` fail once for want of device memory; where it is called."""
    original, devices = getattr(Problem, method), list[torch.device]()

    def lacking(self: Problem, *args: Any) -> Any:
        devices.append(self.weight.device)
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(self, *args)

    monkeypatch.setattr(Problem, method, lacking)
    return devices


@pytest.mark.parametrize("method", ["root", "basis"])
def test_a_factorisation_without_device_memory_is_done_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run, plain = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    group = [run.matrix("mlp.gate_proj"), run.matrix("mlp.up_proj")]
    plain.compressor.factorise(group)
    calls = lack_memory_once(monkeypatch, method)
    run.on(DEVICE).factorise(group)
    assert len(calls) == (2 if method == "root" else 3)
    spectra = [read_spectrum(run.store, IDS, matrix) for matrix in group]
    assert [facts.fallbacks for _, facts in spectra] == [(NOTE,), ()]
    for matrix, (loss, _) in zip(group, spectra, strict=True):
        exact, _ = read_spectrum(plain.store, IDS, matrix)
        torch.testing.assert_close(loss.eigenvalues, exact.eigenvalues, rtol=1e-9, atol=1e-12)


def test_a_truncation_without_device_memory_is_done_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    matrix = run.matrix("mlp.up_proj")
    run.compressor.factorise([matrix])
    lack_memory_once(monkeypatch, "loss")
    record = run.on(DEVICE).truncate(matrix, 5)
    assert MatrixResult.model_validate(record.facts).fallbacks == (NOTE,)


def wrong_eigh(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> list[int]:
    """Let the first decomposition come out `wrong`; the sizes of all that are asked for."""
    original, sizes = torch.linalg.eigh, list[int]()

    def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(matrix))
        values, vectors = original(matrix)
        return wrong(values, vectors) if len(sizes) == 1 else (values, vectors)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    return sizes


def fail(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    raise LinAlgError("linalg.eigh: The algorithm failed to converge")


WRONG: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "no convergence": fail,
    "vectors not orthogonal": lambda values, vectors: (values, vectors + 1e-9),
    "values of others": lambda values, vectors: (values.flip(0), vectors),
    "not a number": lambda values, vectors: (values * float("nan"), vectors),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_decomposition_that_is_wrong_is_done_on_the_host(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    run, plain = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    matrix = run.matrix("self_attn.o_proj")
    plain.compressor.factorise([matrix])
    sizes = wrong_eigh(monkeypatch, wrong)
    run.on(DEVICE).factorise([matrix])
    assert sizes == [32, 32]
    loss, facts = read_spectrum(run.store, IDS, matrix)
    [note] = facts.fallbacks
    assert note.startswith("failed on the cpu device (")
    assert note.endswith("): computed on the host")
    exact, _ = read_spectrum(plain.store, IDS, matrix)
    assert torch.equal(loss.eigenvalues, exact.eigenvalues)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_host_says_which_matrix_it_cannot_decompose(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    run = make_run(tmp_path)
    wrong_eigh(monkeypatch, wrong)
    with pytest.raises(NumericsError, match=r"^layers\.0\.self_attn\.o_proj: "):
        run.compressor.factorise([run.matrix("self_attn.o_proj")])


def test_a_loss_that_is_not_the_predicted_one_is_computed_on_the_host_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    matrix = run.matrix("mlp.up_proj")
    run.compressor.factorise([matrix])
    original, calls = Problem.loss, list[int]()

    def loss(self: Problem, basis: Basis, rank: int) -> float:
        calls.append(rank)
        return 1.01 * original(self, basis, rank)

    monkeypatch.setattr(Problem, "loss", loss)
    record = run.on(DEVICE).truncate(matrix, 5)
    assert calls == [5, 5]
    on_the_device, on_the_host = MatrixResult.model_validate(record.facts).fallbacks
    assert on_the_device.startswith("failed on the cpu device (the loss is ")
    assert on_the_host.startswith("the loss is ")


def test_the_host_itself_falls_back_on_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    lack_memory_once(monkeypatch, "basis")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run.compressor.factorise([run.matrix("mlp.up_proj")])


def test_what_could_not_be_cut_says_so(tmp_path: Path) -> None:
    row = left_dense(make_run(tmp_path).matrix("mlp.up_proj"), True, ("why",))
    assert (row.encoding, row.rank, row.parameters) == ("dense", None, 80 * 32)
    assert (row.energy, row.nats) == (None, 0.0)
    assert row.fallbacks == ("why",)
