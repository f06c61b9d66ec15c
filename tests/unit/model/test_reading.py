"""The weights of one part of a model: its own tensors only, and by name what is amiss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.core_model_loading import MergeModulelist

from schemas.errors import CheckpointError
from tests.kinds import tiny_causal_model
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect
from workers.model.layers import Decoder

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Experts that are stacked in memory lie in the files one by one."""
    tiny_causal_model("mixtral").save_pretrained(tmp_path)
    return tmp_path


def test_one_layer_reads_its_own_tensors_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    read = TensorReader.read

    def noted(self: TensorReader, name: str) -> Tensor:
        taken.append(name)
        return read(self, name)

    monkeypatch.setattr(TensorReader, "read", noted)
    Decoder(folder, inspect(folder), torch.float32, CPU).part(range(1, 2))
    mine = [name for name in load_file(folder / WEIGHTS) if ".layers.1." in name]
    assert sorted(taken) == sorted([*mine, "model.norm.weight"])
    assert any("experts.3." in name for name in taken)


def test_experts_of_which_one_is_missing_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    lost = next(name for name in tensors if ".layers.1." in name and "experts.3." in name)
    tensors.pop(lost)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer 1: .*experts"):
        Decoder(folder, inspect(folder), torch.float32, CPU).part(range(1, 2))


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried", "CUDA error: unspecified"])
def test_experts_that_a_device_cannot_stack_are_no_fault_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(MergeModulelist, "convert", fail)
    with pytest.raises(RuntimeError, match=said):
        Decoder(folder, inspect(folder), torch.float32, CPU).part(range(1, 2))


def test_a_buffer_that_the_whole_model_gives_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """falcon_h1 gives one to all of its layers at once; without that it is refused."""
    model = tiny_causal_model("falcon_h1")
    model.save_pretrained(tmp_path)
    decoder = Decoder(tmp_path, inspect(tmp_path), torch.float32, CPU)
    expected = model.model.layers[1].mamba.mup_vector
    assert expected.unique().numel() > 1
    found = decoder.part(range(1, 2)).layers[1].get_submodule("mamba").get_buffer("mup_vector")
    assert torch.equal(found, expected)
    monkeypatch.setattr(type(model), "_init_weights", lambda *_: None)
    monkeypatch.setattr(type(model.model), "_init_weights", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"nothing gives buffer .* its values"):
        decoder.part(range(2))
