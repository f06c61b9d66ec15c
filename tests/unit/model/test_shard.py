"""Layer shards against hooks on the whole plain transformers model in float64."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from schemas.errors import WorkerError
from schemas.model.spec import ModelSpec
from schemas.request.methods import Truncation
from schemas.run.moments import Pass, Tap, taps
from tests.models import tiny_model
from tests.prose import VOCABULARY
from workers.calibration.moments import Moment, MomentAccumulator
from workers.calibration.sampling import label_noise
from workers.checkpoint.contents import inspect
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step

LAYERS, WINDOWS, TOKENS, SEED = 3, 4, 12, 5
SLIDING = ["full_attention", "sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama biased": {"attention_bias": True, "mlp_bias": True},
    "llama long": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": SLIDING},
    "qwen3": {"tie_word_embeddings": True},
}

# Float32 against float64 through three layers; a wrong bias, mask or label is an error above 1e-2.
FLOAT32 = 2e-5


class Base(NamedTuple):
    """A checkpoint of three layers, and windows of tokens."""

    folder: Path
    spec: ModelSpec
    tokens: Tensor


class Streamed(NamedTuple):
    """What shards found: moments by tap name, and hidden states after the last layer."""

    moments: dict[str, Moment]
    hidden: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    model_type = request.param.partition(" ")[0]
    options = FAMILIES[request.param]
    folder = tiny_model(
        tmp_path_factory.mktemp("base"), model_type, num_hidden_layers=LAYERS, **options
    )
    return Base(folder, inspect(folder), windows())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tiny_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=LAYERS)
    return Base(folder, inspect(folder), windows())


def windows() -> Tensor:
    return torch.randint(VOCABULARY, (WINDOWS, TOKENS), generator=torch.Generator().manual_seed(1))


def make_shards(
    base: Base,
    bounds: Sequence[int],
    found: list[Tap],
    adapted: Callable[[str], None] = lambda _: None,
) -> list[Shard]:
    """Shards of the layers between consecutive `bounds`."""
    decoder = Decoder(base.folder, base.spec, torch.float32, torch.device("cpu"))
    return [
        Shard(
            decoder,
            range(start, stop),
            first=start == 0,
            last=stop == LAYERS,
            taps=[tap for tap in found if tap.layer in range(start, stop)],
            adapted=adapted,
        )
        for start, stop in pairwise(bounds)
    ]


def micro_batches(base: Base, size: int, segments: int) -> list[tuple[Step, Tensor]]:
    parts = [base.tokens[i : i + size] for i in range(0, WINDOWS, size)]
    return [(Step(i * size, i * segments // len(parts)), part) for i, part in enumerate(parts)]


def stream(
    base: Base,
    truncation: Truncation = "fisher",
    bounds: Sequence[int] = (0, LAYERS),
    micro_batch: int = 2,
    segments: int = 2,
    adapted: Callable[[str], None] = lambda _: None,
) -> Streamed:
    """All windows forward, then all of them forward and backward."""
    found = taps(base.spec.matrices, truncation, gradients=True)
    shards = make_shards(base, bounds, found, adapted)
    batches = micro_batches(base, micro_batch, segments)
    outputs = []
    for step, hidden in batches:
        for shard in shards:
            hidden = shard.forward(hidden, step)
        outputs.append(hidden)
    for step, hidden in batches:
        for shard in shards:
            hidden = shard.forward(hidden, step, "gradient")
        gradient = shards[-1].loss_gradient(hidden, step, SEED)
        for shard in reversed(shards):
            gradient = shard.backward(gradient, step)
    moments = {tap.name: m for shard in shards for tap, m in take(shard)}
    return Streamed(moments, torch.cat(outputs))


def take(shard: Shard) -> list[tuple[Tap, Moment]]:
    """The moments of both streams."""
    directions: tuple[Pass, ...] = ("forward", "backward")
    return [(tap, sums.mean(tap.name)) for d in directions for tap, sums in shard.take_sums(d)]


# --- the oracle -------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What hooks saw at one matrix of the whole model, one token a row, in float64."""

    x: Tensor
    y: Tensor
    g: Tensor
    weight: Tensor


class Oracle(NamedTuple):
    """Rows by matrix, and hidden states before the final norm."""

    rows: dict[str, Rows]
    hidden: Tensor


def whole_model(base: Base) -> Any:
    """The plain transformers model in float64."""
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(base.folder, dtype=torch.float64).eval()


def sampled_labels(logits: Tensor) -> Tensor:
    """y ~ softmax(logits) by inverting the cumulative distribution at the noise of each token."""
    cumulative = logits.softmax(-1).cumsum(-1)
    noise = torch.stack([label_noise(SEED, sequence, TOKENS) for sequence in range(WINDOWS)])
    return (cumulative <= noise[..., None]).sum(-1)


def hook_everything(base: Base) -> Oracle:
    """Forward and backward through the plain model, every linear layer observed by tensor hooks."""
    model = whole_model(base)
    seen: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)

    def observe(name: str, linear: Any) -> None:
        def hook(module: Any, args: tuple[Tensor, ...], output: Any) -> None:
            plain = output.detach() - (0 if module.bias is None else module.bias.detach())
            seen[name] = {"x": args[0].detach(), "y": plain}
            output.register_hook(lambda gradient: seen[name].update(g=gradient))

        linear.register_forward_hook(hook)

    for matrix in base.spec.matrices:
        observe(matrix.name, model.model.get_submodule(matrix.name))
    before_norm: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, args: before_norm.append(args[0].detach()))
    logits = model(input_ids=base.tokens).logits
    labels = sampled_labels(logits.detach())
    loss: Any = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    rows = {
        name: Rows(
            **{key: value.flatten(0, 1) for key, value in found.items()},
            weight=model.model.get_submodule(name).weight.detach(),
        )
        for name, found in seen.items()
    }
    return Oracle(rows, before_norm[0])


def expected(tap: Tap, rows: Rows) -> tuple[Tensor, float]:
    """The mean moment at a tap, and the trace it comes with."""
    if tap.direction == "forward":
        observed = traced = rows.x if tap.side == "input" else rows.y
    else:
        observed = rows.g @ rows.weight if tap.side == "input" else rows.g
        traced = rows.g
    tokens = WINDOWS * TOKENS
    return observed.T @ observed / tokens, float(traced.square().sum()) / tokens


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape
    assert float((found - exact).norm() / exact.norm()) < FLOAT32


# --- every family -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(base: Base) -> Oracle:
    return hook_everything(base)


@pytest.fixture(scope="module")
def streamed(base: Base) -> Streamed:
    return stream(base)


def test_hidden_states_are_those_of_the_whole_model(streamed: Streamed, oracle: Oracle) -> None:
    assert_close(streamed.hidden, oracle.hidden)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_moments_are_those_of_the_whole_model(
    base: Base, streamed: Streamed, oracle: Oracle, direction: str
) -> None:
    found = [t for t in taps(base.spec.matrices, "fisher", True) if t.direction == direction]
    assert {tap.side for tap in found} == {"output", "input"}
    for tap in found:
        matrix, trace = expected(tap, oracle.rows[tap.module])
        moment = streamed.moments[tap.name]
        assert moment.matrix is not None
        assert_close(moment.matrix, matrix)
        assert moment.trace == pytest.approx(trace, rel=FLOAT32)
        assert moment.tokens == WINDOWS * TOKENS


def test_the_papers_gram_is_shared_by_what_reads_one_input(base: Base, oracle: Oracle) -> None:
    moments = stream(base, "svd-llm").moments
    for layer in range(LAYERS):
        for shared, readers in {
            "self_attn": ["q_proj", "k_proj", "v_proj"],
            "mlp": ["gate_proj", "up_proj"],
        }.items():
            moment = moments[f"layers.{layer}.{shared}.input"]
            assert moment.matrix is not None
            for reader in readers:
                x = oracle.rows[f"layers.{layer}.{shared}.{reader}"].x
                assert_close(moment.matrix, x.T @ x / len(x))


def test_without_fisher_only_the_trace_of_the_gradient_is_taken(base: Base, oracle: Oracle) -> None:
    moments = stream(base, "input-only").moments
    for name, rows in oracle.rows.items():
        moment = moments[f"{name}.gradient-trace"]
        assert moment.matrix is None
        trace = float(rows.g.square().sum()) / len(rows.g)
        assert moment.trace == pytest.approx(trace, rel=FLOAT32)


@pytest.mark.parametrize("bounds", [(0, 1, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_shards_do_not_change_a_bit(
    base: Base, streamed: Streamed, bounds: tuple[int, ...]
) -> None:
    other = stream(base, bounds=bounds)
    assert torch.equal(other.hidden, streamed.hidden)
    assert other.moments.keys() == streamed.moments.keys()
    for name, moment in streamed.moments.items():
        found = other.moments[name]
        assert found.matrix is not None
        assert moment.matrix is not None
        assert torch.equal(found.matrix, moment.matrix)
        assert found[1:] == moment[1:]


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
    for step, tokens in micro_batches(llama, 2, 2):
        shard.forward(tokens, step)
    gradients = {}
    for step, tokens in micro_batches(llama, 2, 2):
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


def test_only_the_last_shard_has_a_loss(llama: Base) -> None:
    first, _ = make_shards(llama, (0, 1, LAYERS), [])
    with pytest.raises(ValueError, match="head"):
        first.loss_gradient(torch.zeros(1, 2, 32), Step(0, 0), SEED)


def test_a_tap_must_be_a_linear_layer(llama: Base) -> None:
    tap = taps(llama.spec.matrices, "fisher", gradients=False)[0]
    wrong = tap.model_copy(update={"module": "layers.0.input_layernorm"})
    with pytest.raises(TypeError, match="not a linear layer"):
        make_shards(llama, (0, LAYERS), [wrong])


# --- too little memory ------------------------------------------------------------------------


def lack_memory(monkeypatch: pytest.MonkeyPatch, lacks: Iterator[bool]) -> None:
    """Let a moment take no rows whenever the next of `lacks` says so."""
    add = MomentAccumulator.add

    def adding(self: MomentAccumulator, *args: Any) -> None:
        if next(lacks):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
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


def test_a_sequence_that_does_not_fit_is_an_error_with_a_remedy(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack_memory(monkeypatch, itertools.repeat(True))
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
