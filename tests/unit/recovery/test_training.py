"""Training lowers the loss on held-out text, keeps the best state, and continues where it was."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from schemas.result.recovery import Look
from tests.recovery import RANK, Cut, job_of, looks, state, student_of, trainer_of
from workers.checkpoint.tensors import TensorReader
from workers.recovery.models import _shard
from workers.recovery.training import batch, best, share_of_rate
from workers.recovery.updates import whole

pytestmark = pytest.mark.usefixtures("alone")


def test_only_factors_are_trained(truncated: Cut) -> None:
    student = student_of(truncated, torch.bfloat16)
    low_rank = [name for name, row in truncated.rows.items() if row.rank == RANK]
    assert len(student.trained) == 2 * len(low_rank)
    assert {p.dtype for p in student.trained.values()} == {torch.float32}
    others = [p for n, p in student.model.module("").named_parameters() if "up" not in n]
    assert {p.dtype for p in others if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("settings", [{}, {"method": "svd-llm", "lora_rank": 2}])
def test_how_much_is_trained_is_known_before_models_are_read(
    truncated: Cut, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trainer, job = trainer_of(truncated, **settings), job_of(tmp_path, rows=truncated.rows)
    asked = job.config.model_copy(update={"recovery": trainer._config})
    trained = sum(p.numel() for p in trainer.trained.values())
    assert job._replace(config=asked).parameters == trained


def without_neurons(cut: Cut, kept: int = 20) -> Cut:
    """The same, but for the first MLP, which has some neurons less."""
    rows, factors = {**cut.rows}, {**cut.factors}
    generator = torch.Generator().manual_seed(3)
    for matrix in (m for m in cut.spec.matrices if m.neurons and m.layer == 0):
        update = {"encoding": matrix.pruned, "rank": kept}
        rows[matrix.name] = rows[matrix.name].model_copy(update=update)
        columns = matrix.pruned == "pruned-columns"
        shape = (matrix.out_features, kept) if columns else (kept, matrix.in_features)
        factors[matrix.name] = {"dense.weight": torch.randn(shape, generator=generator) / 8}
    return cut._replace(rows=rows, factors=factors)


class Gated(nn.Module):
    """A layer of which a gate is kept in float32, as some kinds of models ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4, dtype=torch.bfloat16).requires_grad_(False)
        self.gate.requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        weights = self.gate(hidden.float()).softmax(-1)
        found: Tensor = self.up(self.norm(hidden)) * weights.to(hidden.dtype)
        return found


@pytest.mark.parametrize("offload", [False, True])
def test_what_is_kept_in_float32_computes_in_it(offload: bool) -> None:
    layer, hidden = Gated(), torch.randn(3, 4).bfloat16()
    expected = layer.up.weight.detach().bfloat16()
    weights = layer.gate(hidden.float()).softmax(-1)
    expected = (layer.norm(hidden) @ expected.T) * weights.bfloat16()
    _shard(layer, init_device_mesh("cpu", (1,)), torch.bfloat16, offload)
    found = layer(hidden)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert layer.up.weight.grad is not None
    assert layer.gate.weight.grad is None


def test_what_comes_in_float32_stays_so() -> None:
    """As the rotary embeddings of OLMo 2 do, with which the saved model computes."""
    found = list[torch.dtype]()
    layer = nn.Linear(4, 4, bias=False)
    _shard(layer, init_device_mesh("cpu", (1,)), torch.bfloat16)
    layer.register_forward_pre_hook(lambda _, args: found.append(args[0].dtype))
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(3, 4))
    assert found == [torch.float32]


def test_what_is_cut_is_not_read_from_the_base(
    truncated: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, of_files = list[str](), TensorReader.read

    def noted(reader: TensorReader, name: str) -> Tensor:
        read.append(name)
        return of_files(reader, name)

    monkeypatch.setattr(TensorReader, "read", noted)
    student_of(truncated)
    matrices = {f"{m.stored}.weight": m.name for m in truncated.spec.matrices}
    dense = {name for name, row in truncated.rows.items() if row.rank is None}
    assert {matrices[name] for name in read if name in matrices} == dense
    assert len(read) > len(dense)


def test_one_layer_at_a_time_holds_its_whole_gradient(truncated: Cut) -> None:
    student, held = student_of(truncated), list[int]()
    layers: Any = student.model.layers
    contexts = {layer._get_fsdp_state()._comm_ctx for layer in layers}

    def count(_: Tensor) -> None:
        held.append(sum(len(context.reduce_scatter_states) for context in contexts))

    hidden: Any = student.model.embed(torch.zeros(1, 4, dtype=torch.int64)).requires_grad_()
    hidden.register_hook(count)
    for index in range(truncated.spec.layers):
        hidden = student.model.layer(index, hidden)
        hidden.register_hook(count)
    hidden.sum().backward()
    assert held == [0] + [1] * truncated.spec.layers


def test_the_loss_falls(truncated: Cut) -> None:
    trainer = trainer_of(truncated)
    before = state(trainer)
    found = looks(trainer)
    assert [look.step for look in found] == [0, 2, 4, 6, 8]
    assert found[0].loss is None
    assert found[-1].tokens == 8 * 3 * 16
    assert best(found) > 0
    assert found[-1].loss is not None
    assert found[1].loss is not None
    assert found[-1].loss < 0.9 * found[1].loss
    assert all(not torch.equal(before[name], p) for name, p in trainer.trained.items())


@torch.no_grad()
def test_norms_are_those_of_the_layers_and_the_one_after_them(truncated: Cut) -> None:
    student, plain = student_of(truncated, norms=True), student_of(truncated)
    layer = [name for name in student.norms if ".layers." in name]
    assert len(layer) == 2 * truncated.spec.layers
    assert {*student.norms} - {*layer} == {"model.norm.weight"}
    assert student.trained.keys() - plain.trained.keys() == {*student.norms.values()}
    assert plain.norms == {}


@torch.no_grad()
def test_norms_begin_as_they_are_stored(truncated: Cut) -> None:
    """Though a model that computes in half precision has them rounded."""
    student = student_of(truncated, torch.bfloat16, norms=True)
    stored = load_file(truncated.folder / "model.safetensors")
    for file, name in student.norms.items():
        assert torch.equal(whole(student.trained[name]), stored[file])
    assert any(not torch.equal(stored[n], stored[n].bfloat16().float()) for n in student.norms)


def test_norms_are_trained_against_the_norm_of_the_base(truncated: Cut) -> None:
    trainer, plain = trainer_of(truncated, norms=True), trainer_of(truncated)
    before = state(trainer)
    assert trainer.look().held_out == plain.look().held_out
    found = list(trainer.run())
    trained = {name for name, p in trainer.trained.items() if not torch.equal(before[name], p)}
    assert trained == trainer.trained.keys()
    assert found[-1].held_out is not None
    with torch.no_grad():
        trainer.trained["model.norm.weight"].mul_(0)
    after = trainer.look().held_out
    assert after is not None
    assert after > 0  # a tail of both would give no token more than another


def test_on_the_host_it_takes_the_same_steps(truncated: Cut) -> None:
    here, on_host = (looks(trainer_of(truncated, offload=offload)) for offload in (False, True))
    assert here == on_host


def test_a_rate_that_destroys_changes_nothing(truncated: Cut) -> None:
    trainer = trainer_of(truncated, learning_rate=30.0, patience=2)
    before = state(trainer)
    found = looks(trainer)
    assert [look.step for look in found] == [0, 2, 4]  # patience ended it
    assert all(torch.equal(before[name], p) for name, p in trainer.trained.items())


def test_a_rate_that_is_too_large_is_halved_and_tried_from_the_best_state(truncated: Cut) -> None:
    trainer = trainer_of(truncated, learning_rate=1.0, patience=9)
    before = state(trainer)
    found = [trainer.look()]
    for look in trainer.run():
        found.append(look)
        gone_back = all(torch.equal(before[name], p) for name, p in trainer.trained.items())
        assert gone_back == (best(found) == 0)
    assert best(found[:-1]) == 0
    assert best(found) == len(found) - 1


@pytest.mark.parametrize("settings", [{}, {"method": "svd-llm"}, {"norms": True}])
def test_what_is_continued_ends_as_what_was_not_stopped(
    truncated: Cut, settings: dict[str, Any]
) -> None:
    """From any look on. What is left of a pruned matrix is trained in both phases."""
    cut = without_neurons(truncated)
    whole = trainer_of(cut, **settings)
    seen, kept = [whole.look()], list[dict[str, Tensor]]()
    for look in whole.run():
        seen.append(look)
        kept.append({name: tensor.clone() for name, tensor in whole.state().items()})
    for done in range(1, len(kept)):
        again = trainer_of(cut, **settings)
        for name, tensor in again.state().items():
            tensor.copy_(kept[done - 1][name])
        again.resume(2 * done, seen[: done + 1], [])
        assert list(again.run()) == seen[done + 1 :]
        assert all(torch.equal(p, whole.trained[name]) for name, p in again.trained.items())


@pytest.mark.parametrize("settings", [{"micro_batch": 2}, {"checkpointing": False}])
def test_how_it_is_computed_changes_rounding_alone(
    truncated: Cut, settings: dict[str, int]
) -> None:
    one, other = looks(trainer_of(truncated)), looks(trainer_of(truncated, **settings))
    assert [x.held_out for x in one] == pytest.approx([x.held_out for x in other], rel=1e-4)


@pytest.mark.parametrize("objective", ["tokens", "hidden"])
def test_other_objectives_fall_on_what_is_trained_on(truncated: Cut, objective: str) -> None:
    found = looks(trainer_of(truncated, objective=objective, patience=9))
    losses = [look.loss for look in found if look.loss is not None]
    assert losses[-1] < losses[0]


def test_every_window_comes_once_before_any_comes_again() -> None:
    rows = [batch(step, windows=10, size=4).tolist() for step in range(10)]
    taken = [row for step in rows for row in step]
    assert taken[:10] == list(range(10))
    assert Counter(taken) == dict.fromkeys(range(10), 4)
    assert taken[10:20] != taken[:10]
    assert len(batch(0, windows=3, size=8)) == 8


def test_the_rate_rises_then_falls_to_almost_nothing() -> None:
    shares = [share_of_rate(step, 100, 0.1) for step in range(100)]
    assert shares[9] == max(shares) == 1.0
    assert shares[0] == pytest.approx(0.1)
    assert 0 < shares[-1] < 0.02
    assert share_of_rate(0, 1, 0.1) == 1.0


def test_a_gradient_that_is_not_finite_is_left_out(truncated: Cut) -> None:
    trainer = trainer_of(truncated)
    taught, asked = trainer._text.taught, []

    def once_wrong(row: int) -> Tensor:
        asked.append(row)
        return taught(row) * (float("nan") if len(asked) == 1 else 1.0)

    before = trainer.look()
    trainer._text = trainer._text._replace(taught=once_wrong)
    found = list(trainer.run())
    assert found[0].loss is None
    assert before.held_out is not None
    assert all(look.held_out is not None for look in found)
    assert min(look.held_out or 0.0 for look in found) < before.held_out


def test_what_is_not_finite_is_never_the_best(truncated: Cut) -> None:
    trainer = trainer_of(truncated, learning_rate=1e20)
    found = looks(trainer)
    assert found[0].held_out is not None
    assert found[-1].held_out is None
    assert best(found) == 0
    again = [Look.model_validate_json(look.model_dump_json()) for look in found]
    assert again == found
