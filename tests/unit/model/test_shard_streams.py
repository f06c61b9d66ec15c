"""What the steps of a stream through shards share, and what a lack of memory makes of one."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.stream.schedule import micro_batches
from schemas.errors import WorkerError
from schemas.run.moments import taps
from tests.models import tiny_model
from tests.shards import (
    FLOAT32,
    LAYERS,
    SEED,
    TOKENS,
    WINDOWS,
    Base,
    assert_close,
    make_shards,
    stream,
    take,
    whole_model,
    windows,
)
from workers.calibration.moments import MomentAccumulator
from workers.model.inspection import inspect
from workers.model.shard import Step


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=LAYERS)
    return Base(folder, inspect(folder), windows())


# --- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro_batch", "segments"), [(1, 1), (1, 4), (3, 2), (4, 1)])
def test_micro_batches_and_segments_change_rounding_only(
    llama: Base, micro_batch: int, segments: int
) -> None:
    """Labels are sampled by sequence: one that changed would show in every gradient."""
    reference = stream(llama).moments
    for name, moment in stream(llama, micro_batch=micro_batch, segments=segments).moments.items():
        exact = reference[name].matrix
        assert moment.matrix is not None
        assert exact is not None
        assert_close(moment.matrix, exact)


def test_seeds_sample_other_labels(llama: Base) -> None:
    [shard] = make_shards(llama, (0, LAYERS), [])
    step = Step(0, 0)
    hidden = shard.forward(llama.tokens, step)
    gradients = [shard.loss_gradient(hidden, step, seed) for seed in (0, 1)]
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


def test_the_sequence_of_a_micro_batch_decides_its_labels(llama: Base) -> None:
    [shard] = make_shards(llama, (0, LAYERS), [])
    hidden = shard.forward(llama.tokens, Step(0, 0))
    whole = shard.loss_gradient(hidden, Step(0, 0), SEED)
    part = shard.loss_gradient(hidden[2:], Step(2, 0), SEED)
    assert torch.equal(part, whole[2:])


def test_a_stream_with_several_steps_in_flight_changes_no_bit(llama: Base) -> None:
    """Two micro-batches go forward before the first of them comes back."""
    found = taps(llama.spec.matrices, "fisher", gradients=True)
    [shard] = make_shards(llama, (0, LAYERS), found)
    for step, tokens in micro_batches(llama.tokens, 2, 2):
        shard.forward(tokens, step)
    gradients = {}
    for step, tokens in micro_batches(llama.tokens, 2, 2):
        hidden = shard.forward(tokens, step, "gradient")
        gradients[step] = shard.loss_gradient(hidden, step, SEED)
    for step, gradient in gradients.items():
        shard.backward(gradient, step)
    reference = stream(llama).moments
    for tap, moment in take(shard):
        exact = reference[tap.name].matrix
        assert moment.matrix is not None
        assert exact is not None
        assert torch.equal(moment.matrix, exact)


def test_the_forward_pass_of_a_gradient_does_not_count(llama: Base) -> None:
    found = taps(llama.spec.matrices, "fisher", gradients=True)
    [shard] = make_shards(llama, (0, LAYERS), found)
    step = Step(0, 0)
    hidden = shard.forward(llama.tokens, step, "gradient")
    shard.backward(torch.ones_like(hidden), step)
    tokens = {tap.direction: moment.tokens for tap, moment in take(shard)}
    assert tokens == {"forward": 0, "backward": WINDOWS * TOKENS}


def test_the_gradient_before_the_first_layer_is_that_of_autograd(llama: Base) -> None:
    shards = make_shards(llama, (0, 1, LAYERS), [])
    step = Step(0, 0)
    hidden = shards[1].forward(shards[0].forward(llama.tokens, step, "gradient"), step, "gradient")
    found = shards[0].backward(shards[1].backward(torch.ones_like(hidden), step), step)
    model = whole_model(llama)
    embedded = model.model.embed_tokens(llama.tokens).detach().requires_grad_()
    model.model.norm = nn.Identity()
    output = model.model(inputs_embeds=embedded).last_hidden_state
    (exact,) = torch.autograd.grad(output, embedded, torch.ones_like(output))
    assert_close(found, exact)


def test_inputs_do_not_wait_once_they_are_used(llama: Base) -> None:
    [shard] = make_shards(llama, (0, LAYERS), [])
    step = Step(0, 0)
    hidden = shard.forward(llama.tokens, step, "gradient")
    shard.backward(torch.ones_like(hidden), step)
    with pytest.raises(KeyError):
        shard.backward(torch.ones_like(hidden), step)


@pytest.mark.parametrize(("bounds", "ends"), [((0, 1, 2, 3), [(1, 0), (0, 0), (0, 1)])])
def test_ends_of_the_decoder(llama: Base, bounds: list[int], ends: list[tuple[int, int]]) -> None:
    shards = make_shards(llama, bounds, [])
    assert [(int(shard.is_first), int(shard.is_last)) for shard in shards] == ends


def test_a_tap_must_be_a_linear_layer(llama: Base) -> None:
    tap = taps(llama.spec.matrices, "fisher", gradients=False)[0]
    wrong = tap.model_copy(update={"module": "layers.0.input_layernorm"})
    with pytest.raises(TypeError, match="not a linear layer"):
        make_shards(llama, (0, LAYERS), [wrong])


# --- too little memory ------------------------------------------------------------------------


DEVICE_MEMORY = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def lack_memory(
    monkeypatch: pytest.MonkeyPatch,
    lacks: Iterator[bool],
    error: BaseException = DEVICE_MEMORY,
) -> None:
    """Let a moment take no rows whenever the next of `lacks` says so."""
    add = MomentAccumulator.add

    def adding(self: MomentAccumulator, *args: Any) -> None:
        if next(lacks):
            raise error
        add(self, *args)

    monkeypatch.setattr(MomentAccumulator, "add", adding)


@pytest.mark.parametrize("fails_at", [0, 13, 17, 45, 52, 70])
def test_a_micro_batch_that_does_not_fit_is_taken_one_sequence_at_a_time(
    llama: Base, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """In the middle of either stream; nothing is counted twice and nothing is left out."""
    whole, notes = stream(llama), list[str]()
    lack_memory(monkeypatch, (count == fails_at for count in itertools.count()))
    found = stream(llama, adapted=notes.append)
    assert notes == [
        f"layers 0 to 2: 2 sequences of {TOKENS} tokens at a time did not fit in memory: taken "
        "one at a time"
    ]
    assert_close(found.hidden, whole.hidden)
    for name, moment in whole.moments.items():
        other = found.moments[name]
        assert other.tokens == moment.tokens
        assert other.trace == pytest.approx(moment.trace, rel=FLOAT32)
        assert other.matrix is not None
        assert moment.matrix is not None
        assert_close(other.matrix, moment.matrix)


@pytest.mark.parametrize("error", [DEVICE_MEMORY, MemoryError()])
def test_a_sequence_that_does_not_fit_is_an_error_with_a_remedy(
    llama: Base, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    lack_memory(monkeypatch, itertools.repeat(True), error)
    with pytest.raises(
        WorkerError,
        match=rf"layers 0 to 2: one sequence of {TOKENS} tokens does not fit.*--gradient-length",
    ):
        stream(llama)


def test_what_is_no_lack_of_memory_passes_unchanged(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: MomentAccumulator, *args: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(MomentAccumulator, "add", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stream(llama)
    monkeypatch.undo()

    def fail_outside(self: nn.Embedding, *_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(nn.Embedding, "forward", fail_outside)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stream(llama)
