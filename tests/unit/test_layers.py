"""The pieces of a decoder: refused where the files are not what config.json says."""

import json
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
from workers.checkpoint import inspect, inspect_decoder
from workers.layers import Decoder

LAYER = "model.layers.1."


def decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(folder, inspect(folder), dtype, torch.device("cpu"))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a checkpoint in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_layer_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(f"{LAYER}input_layernorm.weight"))
    with pytest.raises(CheckpointError, match=r"layer 1.*missing \['input_layernorm\.weight'\]"):
        decoder(tmp_path).layer(1)


def test_a_tensor_that_the_layer_does_not_know_is_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({f"{LAYER}mlp.extra": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"layer 1.*unexpected \['mlp\.extra'\]"):
        decoder(tmp_path).layer(1)


def test_a_shape_that_is_not_that_of_the_configuration_is_refused(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layer 0(.|\n)*gate_proj(.|\n)*81"):
        decoder(tmp_path).layer(0)


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
    with pytest.raises(CheckpointError, match=r"lowrank_llama.*compress the base"):
        inspect(made.folder)
