"""From committed moments of an MLP to what is committed of it without some neurons."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.errors import NumericsError
from schemas.model.spec import Neurons
from schemas.result.output import MatrixResult
from schemas.run.moments import backward_tap, neurons_tap
from tests.moments import IDS, Run, commit, make_run, moment
from workers.pruner import Pruner
from workers.storage.keys import factors_key, moment_key, neurons_key
from workers.storage.spectra import read_neurons
from workers.storage.tensorfile import entries

KEPT = 48  # of 80


def ordered(folder: Path) -> tuple[Run, Neurons, Pruner]:
    run = make_run(folder)
    [neurons] = run.spec.neurons
    pruner = Pruner(run.compressor)
    pruner.order(neurons)
    return run, neurons, pruner


def pruned(pruner: Pruner, neurons: Neurons, kept: int = KEPT) -> list[MatrixResult]:
    return [MatrixResult.model_validate(record.facts) for record in pruner.prune(neurons, kept)]


def stored(run: Run, name: str) -> Tensor:
    return run.store.load(factors_key(IDS, name, KEPT, pruned=True)).tensors["dense.weight"]


def test_each_matrix_has_what_is_left_of_it(tmp_path: Path) -> None:
    run, neurons, pruner = ordered(tmp_path)
    gate, up, down = pruned(pruner, neurons)
    assert [row.name for row in (gate, up, down)] == [m.name for m in neurons.matrices]
    order = run.store.load(neurons_key(IDS, neurons.name)).tensors["order"]
    left = sorted(set(range(80)) - set(order[: 80 - KEPT].tolist()))
    for row, path in ((gate, "mlp.gate_proj"), (up, "mlp.up_proj")):
        assert torch.equal(stored(run, row.name).double(), run.weight(path)[left])
        assert (row.encoding, row.rank, row.parameters) == ("pruned-rows", KEPT, KEPT * 32)
        assert (row.nats, row.achieved_loss, row.energy) == (0.0, 0.0, None)
    assert stored(run, down.name).shape == (32, KEPT)
    assert (down.encoding, down.rank, down.parameters) == ("pruned-columns", KEPT, KEPT * 32)


def test_the_reader_has_the_loss_of_all(tmp_path: Path) -> None:
    run, neurons, pruner = ordered(tmp_path)
    *_, down = pruned(pruner, neurons)
    found = read_neurons(run.store, IDS, neurons)
    assert down.predicted_loss == float(found.losses[80 - KEPT - 1])
    assert down.achieved_loss == pytest.approx(down.predicted_loss, rel=1e-9)
    assert down.nats == 0.5 * down.predicted_loss
    assert down.energy is not None
    assert 0 < down.predicted_loss < down.energy
    assert down.fallbacks == ()


def test_a_loss_that_the_order_did_not_foretell_is_recorded(tmp_path: Path) -> None:
    run, neurons, pruner = ordered(tmp_path)
    key = neurons_key(IDS, neurons.name)
    item = run.store.load(key)
    run.store.forget(key)
    wrong = {"order": item.tensors["order"], "losses": 2 * item.tensors["losses"]}
    run.store.commit(key, entries(wrong), item.facts)
    *_, down = pruned(pruner, neurons)
    [note] = down.fallbacks
    assert note.startswith("the loss is ")
    assert "where the order says" in note


def test_an_order_takes_two_moments_alone(tmp_path: Path) -> None:
    run, neurons, _ = ordered(tmp_path / "all")
    few = make_run(tmp_path / "few", allocation="loss-aware-neurons")
    assert {record.key for record in few.store.records("moments")} == {
        moment_key(IDS, tap)
        for tap in (neurons_tap(neurons.reader), backward_tap(neurons.reader, "fisher"))
    }
    Pruner(few.compressor).order(neurons)
    one, other = (made.store.load(neurons_key(IDS, neurons.name)) for made in (run, few))
    assert torch.equal(one.tensors["order"], other.tensors["order"])
    assert torch.equal(one.tensors["losses"], other.tensors["losses"])
    assert one.facts == other.facts


def test_a_moment_that_is_no_number_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    [neurons] = run.spec.neurons
    commit(run, neurons_tap(neurons.reader), torch.full((80, 80), torch.nan))
    with pytest.raises(NumericsError, match=r"down_proj: a moment holds NaN"):
        Pruner(run.compressor).order(neurons)


def test_neurons_that_no_gradient_reaches_cost_no_nats(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    [neurons] = run.spec.neurons
    tap = backward_tap(neurons.reader, run.config.truncation)
    commit(run, tap, torch.zeros(tap.shape))
    Pruner(run.compressor).order(neurons)
    found = read_neurons(run.store, IDS, neurons)
    assert found.nats == 0.0  # as of a matrix that is cut by its inputs alone
    assert 0 < float(found.losses[0]) < float(found.losses[-1])


def test_moments_of_few_tokens_are_remarked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    [neurons] = run.spec.neurons
    commit(run, neurons_tap(neurons.reader), moment(1, 80), tokens=79)
    pruner = Pruner(run.compressor)
    pruner.order(neurons)
    *writers, down = pruned(pruner, neurons)
    assert down.remarks == ("forward moment of size 80 from 79 tokens",)
    assert [row.remarks for row in writers] == [(), ()]


def test_neurons_of_fewer_rows_than_they_are_stay(tmp_path: Path) -> None:
    run = make_run(tmp_path, input_shrinkage=0.0, neuron_floor=0.0)
    [neurons] = run.spec.neurons
    rows = torch.randn(8, 80, generator=torch.Generator().manual_seed(0))
    commit(run, neurons_tap(neurons.reader), rows.T @ rows / 8)
    Pruner(run.compressor).order(neurons)
    found = read_neurons(run.store, IDS, neurons)
    assert len(found.losses) < 80 - 8  # what can be lost without a loss, and no more
    assert bool(found.losses.isfinite().all())
