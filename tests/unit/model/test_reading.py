"""The weights of one part of a model of any kind are those that transformers gives it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from schemas.errors import CheckpointError
from tests.kinds import KINDS, causal_class, tiny_causal_model
from workers.model.anatomy import describe
from workers.model.carving import Carved, layer_list
from workers.model.reading import Weights

CPU = torch.device("cpu")


class Files:
    """The tensors of a saved checkpoint, and the names of those that were read."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)
        self.names = list(self._files)
        self.taken: list[str] = []

    def read(self, name: str) -> Tensor:
        self.taken.append(name)
        with safe_open(self._files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def on_meta(model: Any) -> Any:
    """The same model without values."""
    with torch.device("meta"):
        return type(model)._from_config(model.config, dtype=torch.float32).eval()


def values(module: Any) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_it_is_from_pretrained(kind: str, tmp_path: Path) -> None:
    tiny_causal_model(kind).save_pretrained(tmp_path)
    whole = causal_class(kind).from_pretrained(tmp_path, dtype=torch.float32).eval()
    model, files = on_meta(whole), Files(tmp_path)
    weights = Weights(model, files.names, files.read, CPU)
    layers, expected = layer_list(model).modules, layer_list(whole).modules
    for index in reversed(range(len(layers))):
        mine, theirs = values(weights.fill_layer(index)), values(expected[index])
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert all(tensor.is_meta for layer in layers[:index] for tensor in layer.parameters())
    weights.fill_outside()
    assert sorted(files.taken) == sorted(files.names)  # each once

    tokens = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))
    carved = Carved(model, describe(type(model), model.config).tuples)
    with torch.no_grad():
        hidden = carved.embed(tokens)
        for index, call in enumerate(carved.record(tokens)):
            hidden = carved.layer(index, hidden, call)
        logits = whole(input_ids=tokens, use_cache=False).logits
        assert torch.equal(carved.tail(hidden, tokens), logits)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    tiny_causal_model("mixtral").save_pretrained(tmp_path)
    return Files(tmp_path)


def test_one_layer_reads_its_own_tensors_only(files: Files) -> None:
    """Experts that are stacked in memory lie in the files one by one."""
    weights = Weights(on_meta(tiny_causal_model("mixtral")), files.names, files.read, CPU)
    weights.fill_layer(1)
    assert sorted(files.taken) == sorted(name for name in files.names if ".layers.1." in name)
    assert any("experts.3." in name for name in files.taken)


@pytest.mark.parametrize("lost", ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight"])
def test_a_tensor_that_is_missing_is_named(lost: str, files: Files) -> None:
    names = [name for name in files.names if name != lost]
    weights = Weights(on_meta(tiny_causal_model("mixtral")), names, files.read, CPU)
    with pytest.raises(CheckpointError, match=rf"'mixtral': tensors missing \['{lost}'\]"):
        weights.fill_layer(1) if "layers" in lost else weights.fill_outside()


def test_a_tensor_without_a_place_is_named(files: Files) -> None:
    names = [*files.names, "model.other.weight"]
    model = on_meta(tiny_causal_model("mixtral"))
    weights = Weights(model, names, lambda name: torch.ones(1), CPU)
    with pytest.raises(CheckpointError, match=r"unexpected \['model.other.weight'\]"):
        weights.fill_outside()


def test_a_tensor_of_another_shape_is_named(files: Files) -> None:
    def read(name: str) -> Tensor:
        tensor = files.read(name)
        return tensor[:-1] if name == "model.layers.1.input_layernorm.weight" else tensor

    weights = Weights(on_meta(tiny_causal_model("mixtral")), files.names, read, CPU)
    with pytest.raises(CheckpointError, match=r"wrong \[.*input_layernorm"):
        weights.fill_layer(1)
