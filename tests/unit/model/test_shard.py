"""Layer shards against hooks on the whole plain transformers model in float64."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from schemas.request.compression import CompressionConfig
from schemas.request.groups import TargetsConfig
from schemas.run.moments import Tap, taps
from schemas.run.targets import select
from tests.kinds import tiny_causal_model
from tests.models import tiny_model
from tests.shards import (
    FLOAT32,
    LAYERS,
    TOKENS,
    WINDOWS,
    Base,
    Streamed,
    assert_close,
    make_shards,
    random_error,
    stream,
    whole_model,
    windows,
)
from workers.model.carving import Carved
from workers.model.inspection import inspect
from workers.model.shard import Step

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


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    model_type = request.param.partition(" ")[0]
    options = FAMILIES[request.param]
    folder = tiny_model(
        tmp_path_factory.mktemp("base"), model_type, num_hidden_layers=LAYERS, **options
    )
    return Base(folder, inspect(folder), windows())


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
    logits.backward(random_error(logits.detach()))
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
    mean = observed.T @ observed / tokens
    if tap.of == "features":
        mean = mean.diagonal()[None]
    return mean, float(traced.square().sum()) / tokens


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
        for part, readers in {
            "self_attn": ["q_proj", "k_proj", "v_proj"],
            "mlp": ["gate_proj", "up_proj"],
        }.items():
            moment = moments[f"layers.{layer}.{part}.{readers[0]}.input"]
            assert moment.matrix is not None
            for reader in readers:
                x = oracle.rows[f"layers.{layer}.{part}.{reader}"].x
                assert_close(moment.matrix, x.T @ x / len(x))


def test_without_fisher_only_the_trace_of_the_gradient_is_taken(base: Base, oracle: Oracle) -> None:
    moments = stream(base, "input-only").moments
    for name, rows in oracle.rows.items():
        moment = moments[f"{name}.gradient-trace"]
        assert moment.matrix is None
        trace = float(rows.g.square().sum()) / len(rows.g)
        assert moment.trace == pytest.approx(trace, rel=FLOAT32)


def test_scales_are_of_the_inputs_of_a_matrix(base: Base, oracle: Oracle) -> None:
    """E|x|, and the squares of dL/dW summed over outputs, window by window, in batches of two."""
    moments = stream(base, "fwsvd").moments
    for matrix in base.spec.matrices:
        rows = oracle.rows[matrix.name]
        magnitudes = moments[f"layers.{matrix.layer}.{matrix.reads}.input-magnitudes"].matrix
        gradients = moments[f"{matrix.name}.weight-gradient"].matrix
        assert magnitudes is not None
        assert gradients is not None
        assert_close(magnitudes[0], rows.x.abs().mean(0))
        x, g = (part.reshape(WINDOWS, TOKENS, -1) for part in (rows.x, rows.g))
        squares = torch.einsum("wti,wtj->wij", g, x).square()
        assert_close(gradients[0], squares.mean((0, 1)))


def test_the_head_has_a_weight_gradient_for_each_sequence(tmp_path: Path) -> None:
    """Its gradient is taken sequence by sequence, whatever a micro-batch holds."""
    everything = TargetsConfig(only=("*", "lm_head"))
    config = CompressionConfig(ratio=(0.2,), method="fwsvd", targets=everything)
    folder = tiny_model(tmp_path, num_hidden_layers=LAYERS)
    headed = Base(folder, select(config, inspect(folder)), windows())
    name = next(matrix.name for matrix in headed.spec.matrices if matrix.is_head)
    one, two, three = (
        stream(headed, "fwsvd", micro_batch=count).moments[f"{name}.weight-gradient"].matrix
        for count in (1, 2, 4)
    )
    assert one is not None
    assert two is not None
    assert three is not None
    assert_close(two, one.double())
    assert_close(three, one.double())


def test_a_head_of_few_tokens_is_read_and_written(tmp_path: Path) -> None:
    """Its smaller side is the output, so its moment there is taken beside that of its features."""
    headed = TargetsConfig(only=("*", "lm_head"))
    config = CompressionConfig(ratio=(0.2,), targets=headed)
    folder = tiny_model(tmp_path, num_hidden_layers=LAYERS, vocab_size=24)
    base = Base(folder, select(config, inspect(folder)), windows() % 24)
    found = stream(base).moments["lm_head.output"]
    logits = whole_model(base)(input_ids=base.tokens).logits.detach().flatten(0, 1)
    assert found.matrix is not None
    assert_close(found.matrix, logits.T @ logits / len(logits))


class Logits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the values of the largest tensor (sequences, tokens, vocabulary) that is computed."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if isinstance(found, Tensor) and found.shape[2:] == (self.vocabulary,):
            self.most = max(self.most, 0 if found.is_meta else found.numel())
        return found


@pytest.mark.parametrize("kind", ["phi", "granite"])
def test_the_inputs_of_a_head_take_no_logits(kind: str, tmp_path: Path) -> None:
    """These have a bias, or are scaled. Two tokens' show that they do not depend on the text."""
    everything = CompressionConfig(ratio=(0.2,), targets=TargetsConfig(only=("*", "lm_head")))
    tiny_causal_model(kind, tie_word_embeddings=False).save_pretrained(tmp_path)
    base = Base(tmp_path, select(everything, inspect(tmp_path)), windows())
    [tap] = [t for t in taps(base.spec.matrices, "svd-llm", False) if t.module == "lm_head"]
    [shard] = make_shards(base, (0, LAYERS), [tap])
    with Logits(base.spec.vocab_size) as logits:
        shard.forward(base.tokens, Step(0, 0))
    assert logits.most == 2 * base.spec.vocab_size
    [(_, sums)] = shard.take_sums("forward")
    assert sums.mean(tap.name).tokens == WINDOWS * TOKENS


def test_what_a_head_has_seen_before_memory_was_short_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = CompressionConfig(ratio=(0.2,), targets=TargetsConfig(only=("*", "lm_head")))
    folder = tiny_model(tmp_path / "model", tie_word_embeddings=False)
    base = Base(folder, select(everything, inspect(folder)), windows())
    [tap] = [t for t in taps(base.spec.matrices, "svd-llm", False) if t.module == "lm_head"]
    whole, failed = Carved.tail, list[int]()

    def fail_once(carved: Carved, rows: Tensor, **given: Any) -> Tensor:
        logits = whole(carved, rows, **given)
        if rows.shape[:2] == base.tokens.shape and not failed:
            failed.append(len(rows))
            raise torch.OutOfMemoryError  # in what a model does to its logits
        return logits

    monkeypatch.setattr(Carved, "tail", fail_once)
    [shard] = make_shards(base, (0, base.spec.layers), [tap])
    shard.forward(base.tokens, Step(0, 0))
    assert failed == [WINDOWS]
    [(_, sums)] = shard.take_sums("forward")
    assert sums.mean(tap.name).tokens == WINDOWS * TOKENS


def test_shards_do_not_change_a_bit(base: Base, streamed: Streamed) -> None:
    other = stream(base, bounds=(0, 1, 2, 3))
    assert torch.equal(other.hidden, streamed.hidden)
    assert other.moments.keys() == streamed.moments.keys()
    for name, moment in streamed.moments.items():
        found = other.moments[name]
        assert found.matrix is not None
        assert moment.matrix is not None
        assert torch.equal(found.matrix, moment.matrix)
        assert found[1:] == moment[1:]
