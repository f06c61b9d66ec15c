"""From committed moments of a matrix to its committed factors, as a worker does it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.errors import NumericsError
from schemas.request.groups import ClusterConfig
from schemas.result.output import MatrixResult
from schemas.run.moments import taps_of
from tests.items import file_of
from tests.moments import IDS, TOKENS, commit, make_run
from workers.compressor import kept_dense
from workers.model.inspection import inspect
from workers.storage.keys import basis_key, factors_key
from workers.storage.spectra import read_spectrum
from workers.storage.tensorfile import entries
from workers.truncation.encoding import factors_of

METHODS = ["two-sided", "svd-llm", "svd-llm-v2"]
# On either side of square: (16, 32), (80, 32), (32, 80) and square.
PATHS = ["self_attn.k_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"]


def written(result: MatrixResult, tensors: dict[str, Tensor]) -> Tensor:
    a, b = factors_of(result.encoding, tensors)
    return a @ b


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_the_factors_lose_what_was_predicted(tmp_path: Path, method: str, path: str) -> None:
    """Float32 storage of basis, moments and factors: 1e-5 of the loss."""
    run = make_run(tmp_path, method)
    result = run.cut(path, 5)
    pivoted = "pivoted-columns" if run.matrix(path).column_parallel else "pivoted"
    assert result.rank == 5
    assert result.encoding == ("plain" if run.config.factors == "plain" else pivoted)
    assert result.achieved_loss == pytest.approx(result.predicted_loss, rel=1e-5)
    assert result.energy is not None
    assert 0 < result.predicted_loss < result.energy
    assert result.rounding < 1e-6
    assert result.fallbacks == ()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_the_stored_tensors_are_a_matrix_of_that_rank(
    tmp_path: Path, method: str, path: str
) -> None:
    run = make_run(tmp_path, method)
    result = run.cut(path, 5)
    matrix = written(result, run.stored(path, 5))
    singular = torch.linalg.svdvals(matrix)
    assert matrix.shape == run.weight(path).shape
    assert float(singular[5]) < 1e-5 * float(singular[0]) < float(singular[4])
    tensors = run.stored(path, 5)
    parameters = sum(t.numel() for name, t in tensors.items() if name != "order")
    assert parameters == result.parameters


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_almost_all_of_the_rank_is_almost_all_of_the_matrix(
    tmp_path: Path, method: str, path: str
) -> None:
    run = make_run(tmp_path, method)
    errors = []
    for rank in (2, run.matrix(path).small - 1):
        found = written(run.cut(path, rank), run.stored(path, rank))
        weight = run.weight(path)
        errors.append(float((found - weight).norm() / weight.norm()))
    assert errors[1] < 0.3 < errors[0]


def test_nats_are_half_the_fisher_loss(tmp_path: Path) -> None:
    result = make_run(tmp_path).cut("mlp.up_proj", 5)
    assert result.nats == 0.5 * result.predicted_loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", PATHS)
def test_a_matrix_without_output_is_written_as_zero(tmp_path: Path, method: str, path: str) -> None:
    run = make_run(tmp_path, method)
    for tap in taps_of(run.matrix(path), run.config.truncation, gradients=False):
        commit(run, tap, torch.zeros(tap.shape))
    result = run.cut(path, 1)
    assert "no output on the calibration text: stored as zero" in result.fallbacks
    assert (result.predicted_loss, result.achieved_loss) == (0.0, 0.0)
    assert not written(result, run.stored(path, 1)).any()


def test_past_the_pivot_bound_plain_factors_of_no_more_parameters_are_used(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, pivot_bound=1e-3)
    result = run.cut("mlp.up_proj", 20)
    assert (result.encoding, result.rank) == ("plain", 20 * (80 + 32 - 20) // (80 + 32))
    assert result.parameters <= 20 * (80 + 32 - 20)
    assert result.interpolation_max is None
    [note] = result.fallbacks
    assert "max|T|" in note
    assert "> 0.001" in note
    assert result.achieved_loss == pytest.approx(result.predicted_loss, rel=1e-5)


@pytest.mark.parametrize(("rank", "lower"), [(18, 14), (2, 1)])
def test_past_the_pivot_bound_the_rank_stays_on_the_grid_unless_none_fits(
    tmp_path: Path, rank: int, lower: int
) -> None:
    """18 (80 + 32 - 18) parameters are enough for rank 15, 2 (80 + 32 - 2) for rank 1."""
    run = make_run(tmp_path, pivot_bound=1e-3)
    allocation = run.config.allocation.model_copy(update={"rank_multiple": 2})
    run = run._replace(config=run.config.model_copy(update={"allocation": allocation}))
    result = run.cut("mlp.up_proj", rank)
    assert (result.encoding, result.rank) == ("plain", lower)
    assert result.parameters <= rank * (80 + 32 - rank)
    [note] = result.fallbacks
    assert f"plain factors at rank {lower} used" in note


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_of_the_dtype_of_the_base_and_its_rounding_is_told(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    run = make_run(tmp_path)
    path = run.folder / "model.safetensors"
    save_file({k: t.to(dtype) for k, t in load_file(path).items()}, path)
    run = run._replace(spec=inspect(run.folder))
    result = run.cut("mlp.up_proj", 5)
    tensors = run.store.load(factors_key(IDS, run.matrix("mlp.up_proj").name, 5)).tensors
    assert {k: t.dtype for k, t in tensors.items()} == {
        "down.weight": dtype,
        "up.weight": dtype,
        "order": torch.int64,
    }
    eps = torch.finfo(dtype).eps
    assert 0.1 * eps < result.rounding < 10 * eps


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run.folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, path)
    with pytest.raises(NumericsError, match=r"^layers\.0\.mlp\.up_proj: the weight holds NaN"):
        run.compressor.factorise([run.matrix("mlp.up_proj")])


@pytest.mark.parametrize(("path", "at"), [("mlp.up_proj", 0), ("mlp.down_proj", 1)])
def test_a_moment_that_is_not_finite_is_refused_by_name(tmp_path: Path, path: str, at: int) -> None:
    run = make_run(tmp_path)
    matrix = run.matrix(path)
    tap = taps_of(matrix, "fisher", gradients=False)[at]
    commit(run, tap, torch.full(tap.shape, torch.nan))
    with pytest.raises(NumericsError, match=rf"^layers\.0\.{path}: a moment holds NaN"):
        run.compressor.factorise([matrix])


def test_a_basis_is_enough_for_every_rank(tmp_path: Path) -> None:
    """Factors of another rank come from the same item, which is not written again."""
    run = make_run(tmp_path)
    run.cut("mlp.up_proj", 5)
    path = file_of(run.store, basis_key(IDS, run.matrix("mlp.up_proj").name))
    before = path.stat().st_mtime_ns
    record = run.compressor.truncate(run.matrix("mlp.up_proj"), 9)
    assert path.stat().st_mtime_ns == before
    result = MatrixResult.model_validate(record.facts)
    assert written(result, run.stored("mlp.up_proj", 9)).shape == (80, 32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["mlp.up_proj", "mlp.down_proj"])
def test_a_basis_that_is_not_kept_is_computed_again(tmp_path: Path, method: str, path: str) -> None:
    kept, frugal = (make_run(tmp_path / name, method) for name in ("kept", "frugal"))
    cluster = ClusterConfig(keep_bases=False)
    frugal = frugal._replace(config=frugal.config.model_copy(update={"cluster": cluster}))
    assert frugal.cut(path, 5) == kept.cut(path, 5)
    name = kept.matrix(path).name
    assert kept.store.record(basis_key(IDS, name))
    assert not frugal.store.record(basis_key(IDS, name))
    key = factors_key(IDS, name, 5)
    assert file_of(frugal.store, key).read_bytes() == file_of(kept.store, key).read_bytes()


def test_the_spectrum_is_kept_in_float64_with_its_facts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.compressor.factorise([run.matrix("mlp.up_proj")])
    loss, facts = read_spectrum(run.store, IDS, run.matrix("mlp.up_proj"))
    assert loss.eigenvalues.dtype == torch.float64
    assert len(loss.eigenvalues) == 32
    assert (loss.nats, loss.tokens) == (0.5, TOKENS)
    assert (facts.through, facts.fallbacks, facts.remarks) == ("left", (), ())
    assert facts.shrinkage is not None
    assert 0 < facts.shrinkage < 1


def test_what_stays_dense_has_a_row_without_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    matrix = run.matrix("mlp.up_proj")
    run.compressor.factorise([matrix])
    row = kept_dense(run.store, IDS, matrix)
    assert (row.encoding, row.rank, row.parameters) == ("dense", None, 80 * 32)
    assert (row.predicted_loss, row.achieved_loss, row.nats) == (0.0, 0.0, 0.0)
    assert row.energy is not None
    assert row.energy > 0
    assert not row.fallbacks


def test_what_fell_back_is_told_of_a_matrix_that_stays_dense(tmp_path: Path) -> None:
    """Its spectrum decided that it does."""
    run = make_run(tmp_path)
    matrix = run.matrix("mlp.up_proj")
    [record] = run.compressor.factorise([matrix])
    spectrum, key = run.store.load(record.key), record.key
    run.store.forget(key)
    facts = spectrum.facts | {"fallbacks": ["the host computed it"]}
    run.store.commit(key, entries(spectrum.tensors), facts)
    assert kept_dense(run.store, IDS, matrix).fallbacks == ("the host computed it",)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_work_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    runs = [make_run(tmp_path / name, method) for name in ("one", "two")]
    contents = []
    for run in runs:
        run.cut("mlp.up_proj", 5)
        name = run.matrix("mlp.up_proj").name
        contents.append(
            [
                file_of(run.store, key).read_bytes()
                for key in (basis_key(IDS, name), factors_key(IDS, name, 5))
            ]
        )
    assert contents[0] == contents[1]
