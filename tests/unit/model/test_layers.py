"""The pieces of a decoder: refused where the files are not what config.json says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.configuration_lowrank import ARCHITECTURES, ENCODINGS
from schemas.errors import CheckpointError
from tests.low_rank import PROMPTS, make_checkpoint
from tests.models import tiny_model
from workers.checkpoint.contents import inspect, inspect_decoder
from workers.model.layers import Decoder, require_buildable

LAYER = "model.layers.1."
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
FACTOR = f"{LAYER}self_attn.q_proj.down.weight"


def decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(folder, inspect(folder), dtype, torch.device("cpu"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FACTOR), r"layer 1.*missing \['self_attn\.q_proj\.down\.weight'\]"),
        (
            lambda t: t.update({f"{FACTOR}s": torch.zeros(1)}),
            r"layer 1.*unexpected \['self_attn\.q_proj\.down\.weights'\]",
        ),
        (lambda t: t.update({FACTOR: torch.zeros(3, 3)}), r"layer 1.*q_proj\.down.*\[3, 3\]"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_the_parts_of_a_compressed_matrix_are_those_of_its_layer(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "low-rank", "llama", ("plain",)).folder
    rewrite(folder, change)
    pieces = Decoder(folder, inspect_decoder(folder), torch.float32, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=message):
        pieces.layer(1)


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "name", [EMBEDDING, HEAD, NORM, f"{LAYER}mlp.up_proj.weight", f"{LAYER}input_layernorm.weight"]
)
def test_a_value_that_is_not_finite_is_refused_with_file_and_tensor(
    name: str, value: float, tmp_path: Path
) -> None:
    tiny_model(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    pieces = decoder(tmp_path)
    message = rf"model\.safetensors: {re.escape(name)} holds NaN or infinite values; .* fetch"
    with pytest.raises(CheckpointError, match=message):
        _ = pieces.embedding(), pieces.layer(1), pieces.head()
    pieces.layer(0)  # it is as it should be


def test_a_value_beyond_the_compute_dtype_is_refused_with_the_remedy(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors[EMBEDDING].view(-1)[:1].fill_(7e4))
    assert decoder(tmp_path, torch.bfloat16).embedding().isfinite().all()
    with pytest.raises(CheckpointError, match=r"embed_tokens.* beyond the range of float16; use"):
        decoder(tmp_path, torch.float16).embedding()


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
    require_buildable(tmp_path, inspect(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: transformers cannot compute"):
        require_buildable(tmp_path, inspect(tmp_path))


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_the_embedding_where_they_are_tied(tmp_path: Path, tied: bool) -> None:
    tiny_model(tmp_path, tie_word_embeddings=tied)
    pieces = decoder(tmp_path)
    assert torch.equal(pieces.head()[1], pieces.embedding()) is tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_of_the_compute_dtype_and_frozen(tmp_path: Path, dtype: torch.dtype) -> None:
    pieces = decoder(tiny_model(tmp_path), dtype)
    norm, head = pieces.head()
    parameters = [*pieces.layer(0).parameters(), *norm.parameters()]
    assert {p.dtype for p in (*parameters, head, pieces.embedding())} == {dtype}
    assert not any(p.requires_grad or p.is_meta for p in parameters)


def test_a_layer_holds_no_other_layer(tmp_path: Path) -> None:
    layer = decoder(tiny_model(tmp_path, num_hidden_layers=3)).layer(2)
    assert {name[:9] for name, _ in layer.named_parameters()} == {"layers.0."}


@pytest.mark.parametrize("base_type", ARCHITECTURES)
def test_a_compressed_checkpoint_is_built_layer_by_layer(tmp_path: Path, base_type: str) -> None:
    made = make_checkpoint(tmp_path / "low-rank", base_type, ENCODINGS)
    spec = inspect_decoder(made.folder)
    pieces = Decoder(made.folder, spec, torch.float32, torch.device("cpu"))
    tokens = PROMPTS["input_ids"][1:]  # without padding
    with torch.no_grad():
        hidden = torch.nn.functional.embedding(tokens, pieces.embedding())
        for index in range(spec.layers):
            hidden = pieces.layer(index)(inputs_embeds=hidden, use_cache=False).last_hidden_state
        norm, head = pieces.head()
        torch.testing.assert_close(norm(hidden) @ head.T, made.logits[1:], rtol=1e-4, atol=1e-4)


def test_a_compressed_checkpoint_is_no_base(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "low-rank", "llama", ENCODINGS)
    with pytest.raises(CheckpointError, match="compressed checkpoint; name the base"):
        inspect(made.folder)
