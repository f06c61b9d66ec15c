"""The allocator reads committed spectra and answers with ranks, parameters and nats."""

from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from schemas.errors import RunError
from schemas.request.config import RunConfig
from schemas.request.methods import Method
from schemas.result.output import NeuronsFacts, SpectrumFacts
from schemas.run.identity import Identities
from tests.spectra import matrix, mlp
from workers.allocator import RankAllocator
from workers.storage.keys import neurons_key, spectrum_key
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store
from workers.storage.tensorfile import entries

IDS = Identities(forward="f", backward="g", bases="b", factors="f", neurons="n")
LOWERING = [method for method in get_args(Method) if method not in ("neurons", "width")]


def allocator(
    folder: Path,
    method: Method,
    spectra: list[Tensor],
    nats: float | None,
    multiple: int = 1,
    whole: str | None = None,
) -> RankAllocator:
    """An allocator that has read these spectra of square matrices."""
    config = RunConfig.model_validate(
        {
            "model": "m",
            "output": folder / "out",
            "ratio": 0.2,
            "method": method,
            "allocation": {"rank_multiple": multiple},
            "ratio_by": {} if whole is None else {whole: 0.0},
        }
    )
    store = Store(config.run_folder)
    matrices = [matrix(index, size, size) for index, size in enumerate(map(len, spectra))]
    facts = SpectrumFacts(
        through="none", nats=nats, tokens=100, shrinkage=None, fallbacks=(), remarks=()
    )
    for one, spectrum in zip(matrices, spectra, strict=True):
        content = entries({"eigenvalues": spectrum})
        store.commit(spectrum_key(IDS, one.name), content, facts.model_dump(mode="json"))
    made = RankAllocator(config)
    made.gather(matrices, IDS)
    return made


def spectrum(size: int) -> Tensor:
    return torch.arange(size, 0, -1, dtype=torch.float64)


def test_it_counts_parameters_and_nats(tmp_path: Path) -> None:
    found = allocator(tmp_path, "svd-llm", [spectrum(10), spectrum(20)], 0.5).allocate(0.2)
    assert found.ranks == {"layers.0.mlp.up_proj": 4, "layers.1.mlp.up_proj": 8}
    assert found.parameters == 4 * 20 + 8 * 40
    assert (found.budget, found.dense_parameters) == (400, 500)
    assert found.nats == 0.5 * (sum(range(1, 7)) + sum(range(1, 13)))
    assert found.fallbacks == ()


def test_spectra_are_read_several_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read waits for another one, which never comes if they are read in turn."""
    together = Barrier(2, timeout=600)

    def read(*arguments: Any) -> Any:
        together.wait()
        return read_spectrum(*arguments)

    monkeypatch.setattr("workers.allocator.read_spectrum", read)
    found = allocator(tmp_path, "svd-llm", [spectrum(size) for size in (10, 20, 30, 40)], 0.5)
    assert list(found.allocate(0.2).ranks.values()) == [4, 8, 12, 16]


def test_without_gradients_no_nats_are_predicted(tmp_path: Path) -> None:
    assert allocator(tmp_path, "svd-llm", [spectrum(10)], None).allocate(0.2).nats is None


def test_what_is_dense_loses_nothing(tmp_path: Path) -> None:
    found = allocator(tmp_path, "two-sided", [spectrum(10)], 0.5).allocate(0.0)
    assert found.ranks == {"layers.0.mlp.up_proj": None}
    assert (found.parameters, found.nats) == (100, 0.0)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
def test_the_budget_is_that_of_the_written_ratio(tmp_path: Path, ratio: float) -> None:
    made = allocator(tmp_path, "svd-llm", [spectrum(40)] * 3, 0.5)
    assert made.allocate(ratio).budget == round((1 - ratio) * 4800)


def test_fallbacks_of_the_method_are_kept(tmp_path: Path) -> None:
    [note] = allocator(tmp_path, "svd-llm-v2", [spectrum(10) * 0], 0.5).allocate(0.5).fallbacks
    assert "uniform ratio used" in note


def test_rank_1_over_the_budget_is_recorded(tmp_path: Path) -> None:
    found = allocator(tmp_path, "svd-llm", [spectrum(10)] * 2, 0.5).allocate(0.9)
    assert set(found.ranks.values()) == {1}
    assert found.fallbacks == ("the ranks take 20 parameters more than the budget",)


def test_an_mlp_that_cannot_keep_the_width_of_others_is_recorded(tmp_path: Path) -> None:
    fields = {"model": "m", "output": tmp_path / "out", "ratio": 0.2, "method": "width"}
    config = RunConfig.model_validate(fields)
    mlps, store = [mlp(layer, 16, 6) for layer in range(3)], Store(config.run_folder)
    facts = NeuronsFacts(nats=0.5, shrinkage=None).model_dump(mode="json")
    for one in mlps:
        content = entries({"losses": torch.arange(1.0, 16.0, dtype=torch.float64)})
        store.commit(neurons_key(IDS, one.name), content, facts)
    matrices, made = [m for one in mlps for m in one.matrices], RankAllocator(config)
    made.gather(matrices, IDS, neurons=mlps)
    assert made.allocate(0.2).fallbacks == ()
    made.gather(matrices, IDS, {"layers.1.mlp.up_proj"}, mlps)
    found = made.allocate(0.2)
    assert {found.ranks[one.name] for one in mlps} == {None, 10}
    assert found.fallbacks == ("1 of 3 MLPs keep all their neurons, and not the width of others",)


@pytest.mark.parametrize("method", LOWERING)
def test_ranks_are_on_the_grid_and_those_of_small_matrices_are_recorded(
    tmp_path: Path, method: Method
) -> None:
    """Of 39 ranks below full rank, 2 are multiples of 16, and 9 are multiples of 4."""
    spectra = [spectrum(40) / 8] * 3 + [spectrum(160)] * 2
    found = allocator(tmp_path, method, spectra, 0.5, multiple=16).allocate(0.42)
    narrow = [rank for rank in list(found.ranks.values())[:3] if rank]
    wide = [rank for rank in list(found.ranks.values())[3:] if rank]
    assert narrow
    assert wide
    assert not any(rank % 4 for rank in narrow)
    assert not any(rank % 16 for rank in wide)
    small = sum(1 for rank in narrow if rank % 16)
    note = f"{small} of 40 x 40, which have few multiples of 16: their ranks are multiples of 4"
    assert [one for one in found.fallbacks if "multiples" in one] == [note]


@pytest.mark.parametrize("method", LOWERING)
def test_what_must_stay_dense_counts_in_the_budget(tmp_path: Path, method: Method) -> None:
    """So the others are cut more; and what must stay dense needs no spectrum."""
    made = allocator(tmp_path, method, [spectrum(40) * 100] * 3, 0.5)
    matrices = [matrix(index, 40, 40) for index in range(4)]
    alone = made.allocate(0.3)
    made.gather(matrices, IDS, {"layers.3.mlp.up_proj"})
    found = made.allocate(0.3)
    assert found.ranks.keys() == {one.name for one in matrices}
    assert found.ranks["layers.3.mlp.up_proj"] is None
    assert (found.budget, found.dense_parameters) == (round(0.7 * 6400), 6400)
    assert found.parameters <= found.budget
    assert found.parameters - 1600 < alone.parameters


def test_what_was_to_stay_whole_may_stay_dense(tmp_path: Path) -> None:
    """Nothing is asked of it, so nothing is over its budget."""
    made = allocator(tmp_path, "two-sided", [spectrum(10)] * 2, 0.5, whole="layers.1.*")
    made.gather([matrix(0, 10, 10), matrix(1, 10, 10)], IDS, {"layers.1.mlp.up_proj"})
    found = made.allocate(0.4)
    assert found.ranks["layers.1.mlp.up_proj"] is None
    assert found.parameters <= found.budget


@pytest.mark.parametrize(("ratio", "left"), [(0.6, 80), (0.45, 110)])
def test_a_budget_that_what_must_stay_dense_leaves_too_little_of_is_refused(
    tmp_path: Path, ratio: float, left: int
) -> None:
    """It takes more than all of it, or leaves 10 of which the lowest rank takes 19."""
    made = allocator(tmp_path, "two-sided", [spectrum(10)] * 2, 0.5)
    made.gather([matrix(0, 10, 10), matrix(1, 10, 10)], IDS, {"layers.1.mlp.up_proj"})
    message = rf"ratio {ratio}: what could not.*100 parameters, and {left} may"
    with pytest.raises(RunError, match=message):
        made.allocate(ratio)
