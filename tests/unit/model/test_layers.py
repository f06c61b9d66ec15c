"""The parts of a decoder: refused if the files are not what config.json says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from schemas.errors import CheckpointError
from tests.low_rank import PROMPTS, every, make_checkpoint
from tests.models import CONFIGS, rewrite, tiny_model
from workers.model.inspection import inspect, inspect_decoder
from workers.model.layers import Decoder

LAYER = "model.layers.1."
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
FACTOR = f"{LAYER}self_attn.q_proj.down.weight"


def decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(folder, inspect(folder), dtype, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FACTOR), rf"no tensor {FACTOR} in the files"),
        (
            lambda t: t.update({f"{FACTOR}s": torch.zeros(1)}),
            rf"tensor {FACTOR}s is no part of the model",
        ),
        (lambda t: t.update({FACTOR: torch.zeros(3, 3)}), rf"{FACTOR} has shape \[3, 3\]"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_the_parts_of_a_compressed_matrix_are_those_of_its_layer(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "low-rank", "llama", ("plain",)).folder
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        inspect_decoder(folder)


UP = f"{LAYER}mlp.up_proj.weight"
NOT_FINITE = [
    (name, torch.nan) for name in (EMBEDDING, HEAD, NORM, f"{LAYER}input_layernorm.weight")
]
NOT_FINITE += [(UP, value) for value in (torch.nan, torch.inf, -torch.inf)]


@pytest.mark.parametrize(("name", "value"), NOT_FINITE)
def test_a_value_that_is_not_finite_is_refused_with_file_and_tensor(
    name: str, value: float, folder: Path
) -> None:
    rewrite(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    read = decoder(folder)
    message = rf"model\.safetensors: {re.escape(name)} holds NaN or infinite values; .* fetch"
    with pytest.raises(CheckpointError, match=message):
        read.part(range(2))
    if name.startswith(LAYER):
        read.part(range(1))  # it is as it should be


def test_a_value_beyond_the_compute_dtype_is_refused_with_the_remedy(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors[EMBEDDING].view(-1)[:1].fill_(7e4))
    tokens = torch.arange(8)[None]
    assert decoder(folder, torch.bfloat16).part(range(1)).embed(tokens).isfinite().all()
    with pytest.raises(CheckpointError, match=r"embed_tokens.* beyond the range of float16; use"):
        decoder(folder, torch.float16).part(range(1))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "nonsense"},
        {"rope_parameters": {"rope_type": "nonsense"}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}},
        {"rms_norm_eps": "small"},
        {"max_position_embeddings": []},
        {"layer_types": ["full_attention"]},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_a_configuration_that_transformers_cannot_build_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model(tmp_path, "qwen2")
    inspect(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = r"config\.json: transformers cannot (build|compute)"
    with pytest.raises(CheckpointError, match=message):
        inspect(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_the_embedding_where_they_are_tied(tmp_path: Path, tied: bool) -> None:
    tiny_model(tmp_path, tie_word_embeddings=tied)
    tensors = load_file(tmp_path / "model.safetensors")
    assert (HEAD not in tensors) is tied
    whole, last, none = (decoder(tmp_path).part(range(start, 2)) for start in (0, 1, 2))
    tokens = torch.arange(8)[None]
    assert torch.equal(whole.embed(tokens), tensors[EMBEDDING][tokens])
    hidden = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    normed = whole.module("norm")(hidden)
    expected = normed @ tensors[EMBEDDING if tied else HEAD].T
    for part in (whole, last, none):
        torch.testing.assert_close(part.tail(hidden), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_of_the_compute_dtype_and_frozen(model: Path, dtype: torch.dtype) -> None:
    part = decoder(model, dtype).part(range(2))
    modules = [*part.layers, part.module("norm"), part.module("embed_tokens")]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    assert {p.dtype for p in parameters} == {dtype}
    assert not any(p.requires_grad or p.is_meta for p in parameters)
    tokens = torch.arange(8)[None]
    assert part.embed(tokens).dtype == part.tail(part.embed(tokens)).dtype == dtype
    assert not part.tail(part.embed(tokens)).requires_grad


@pytest.mark.parametrize(("tied", "held"), [(False, {NORM, HEAD}), (True, {NORM, EMBEDDING})])
def test_a_part_holds_no_other_layer(tmp_path: Path, tied: bool, held: set[str]) -> None:
    folder = tiny_model(tmp_path, num_hidden_layers=3, tie_word_embeddings=tied)
    read = decoder(folder)
    for layers in (range(1, 2), range(2, 3), range(3, 3), range(0)):
        part = read.part(layers)
        for index, layer in enumerate(part.layers):
            on_meta = {parameter.is_meta for parameter in layer.parameters()}
            assert on_meta == {index not in layers}
    spec, last = inspect(folder), read.part(range(3, 3))
    outside = {t.name for t in spec.held(range(2, 3)) if t.layer is None}
    assert outside == {t.name for t in spec.held(range(3, 3))} == held
    assert last.module("embed_tokens").weight.is_meta is not tied
    assert {t.name for t in spec.held(range(0))} == {NORM}


@pytest.mark.parametrize("base_type", CONFIGS)
def test_a_compressed_checkpoint_is_built_layer_by_layer(tmp_path: Path, base_type: str) -> None:
    made = make_checkpoint(tmp_path / "low-rank", base_type, every(base_type))
    spec = inspect_decoder(made.folder)
    read = Decoder(made.folder, spec, torch.float32, torch.device("cpu"))
    hidden = PROMPTS["input_ids"][1:]  # without padding
    with torch.no_grad():
        for index in range(spec.layers):
            part = read.part(range(index, index + 1))
            hidden = part.layer(index, hidden if index else part.embed(hidden))
        torch.testing.assert_close(part.tail(hidden), made.logits[1:], rtol=1e-4, atol=1e-4)


def test_a_compressed_checkpoint_is_no_base(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "low-rank", "llama", every("llama"))
    with pytest.raises(CheckpointError, match="compressed checkpoint; name the base"):
        inspect(made.folder)
