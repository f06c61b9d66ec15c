"""Everything that headers say of a checkpoint, and every way in which one can be wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas.errors import CheckpointError
from tests.kinds import tiny_causal_model
from tests.models import CONFIGS, rewrite, tiny_model
from tests.unit.checkpoint.conftest import configure, refusal
from workers.checkpoint import fetching
from workers.checkpoint.config_file import read_config
from workers.checkpoint.contents import base_files
from workers.checkpoint.fetching import resolve
from workers.checkpoint.tensors import TensorReader
from workers.model.inspection import inspect
from workers.model.skeleton import skeleton
from workers.storage.files import file_sha256

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def sharded(folder: Path) -> list[str]:
    """Save the model anew in several files; their names."""
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    names = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(names) > 1
    return names


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", CONFIGS)
def test_targets_are_the_linear_layers_of_the_decoder(tmp_path: Path, model_type: str) -> None:
    spec = inspect(tiny_model(tmp_path, model_type))
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path)
    linears = {
        name: module
        for name, module in model.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {matrix.name for matrix in spec.matrices} == linears.keys()
    for matrix in spec.matrices:
        linear = linears[matrix.name]
        assert (matrix.out_features, matrix.in_features) == tuple(linear.weight.shape)
        assert matrix.bias == (linear.bias is not None)
        assert matrix.name == f"layers.{matrix.layer}.{matrix.path}"


def test_sizes_are_those_of_the_configuration(folder: Path) -> None:
    spec = inspect(folder)
    assert (spec.layers, spec.hidden_size, spec.vocab_size) == (2, 32, 384)
    assert spec.model_type == "llama"
    assert spec.targeted == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 80 * 32)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_known(tmp_path: Path, tied: bool) -> None:
    spec = inspect(tiny_model(tmp_path, tie_word_embeddings=tied))
    assert spec.tied is tied
    assert ("lm_head.weight" in {tensor.name for tensor in spec.tensors}) is not tied


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")]
)
def test_the_dtype_is_that_of_the_stored_matrices(
    folder: Path, dtype: torch.dtype, name: str
) -> None:
    rewrite(folder, lambda tensors: tensors.update({k: t.to(dtype) for k, t in tensors.items()}))
    spec = inspect(folder)
    assert spec.dtype == name


def test_one_file_and_several_are_one_model(tmp_path: Path) -> None:
    one = inspect(tiny_model(tmp_path / "one"))
    sharded(tiny_model(tmp_path / "several"))
    several = inspect(tmp_path / "several")
    assert several.matrices == one.matrices
    where = {tensor.name: tensor.file for tensor in several.tensors}
    assert where.keys() == {tensor.name for tensor in one.tensors}
    assert len(set(where.values())) > 1


def test_tensors_are_read_by_name_from_the_right_file(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")
    sharded(folder)
    reader = TensorReader(folder, inspect(folder))
    for name, tensor in expected.items():
        assert torch.equal(reader.read(name), tensor)


def test_base_files_are_the_configuration_and_the_weights(folder: Path) -> None:
    names = sharded(folder)
    found = base_files(folder, inspect(folder))
    assert found == {name: file_sha256(folder / name) for name in ["config.json", *names]}


def test_infinity_is_read_as_transformers_writes_it_today(tmp_path: Path) -> None:
    """Published configurations of Mamba 2 have it as earlier versions wrote it."""
    tiny_causal_model("mamba2").save_pretrained(tmp_path)
    configure(tmp_path, time_step_limit=[0.0, math.inf])
    assert "Infinity]" in (tmp_path / "config.json").read_text()
    config = read_config(tmp_path)
    assert config["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert skeleton(config, "", torch.bfloat16).config.time_step_limit == [0.0, math.inf]
    assert inspect(tmp_path).model_type == "mamba2"


# --- what is refused --------------------------------------------------------------------------


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json: not found; is this a Hugging Face checkpoint?" in refusal(folder)


def test_a_config_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json: not a JSON object"):
        read_config(folder)


@pytest.mark.parametrize("model_type", ["vit", "no-such-family", None])
def test_an_unsupported_family_is_refused_with_the_way_to_the_supported_ones(
    folder: Path, model_type: str | None
) -> None:
    configure(folder, model_type=model_type)
    message = refusal(folder)
    assert f"model_type {model_type!r} is not supported" in message
    assert "`svdllm architectures` lists" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_hidden_layers", value) for value in (None, 0, -1, "many", 2.5)),
        *(("hidden_size", None), ("vocab_size", None)),
    ],
)
def test_a_size_that_is_none_is_refused(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    assert f"config.json: {key} is {value!r}" in refusal(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_size_that_is_not_there_is_that_of_transformers(folder: Path, key: str) -> None:
    configure(folder, **{key: None})
    message = refusal(folder)
    assert "config.json implies" in message or "config.json describes (llama, 32 layers" in message


def test_a_quantisation_of_null_is_none(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect(folder).layers == 2


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "found no weights" in refusal(folder)


def test_a_missing_file_is_refused_by_name(folder: Path) -> None:
    name = sharded(folder)[1]
    (folder / name).unlink()
    assert f"{name}: not found, though the index names it" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_by_name(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: not a complete safetensors file" in refusal(folder)


@pytest.mark.parametrize(
    "name", [Q_PROJ, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)
def test_a_missing_tensor_is_refused_by_name(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.pop(name))
    assert name in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_matrix_of_integers_is_refused(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(dtype)}))
    assert "compress the original, then quantise the result" in refusal(folder)


@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight"])
def test_a_dtype_that_cannot_be_written_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    assert f"{name} is F8_E4M3; a quantised base is not read: compress the orig" in refusal(folder)
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(32).to(torch.uint16)}))
    assert f"{name} is U16; only F64, F32, F16, BF16" in refusal(folder)


# --- where a model is -------------------------------------------------------------------------


def test_a_folder_is_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(folder), None) == folder.resolve()
    monkeypatch.chdir(folder.parent)
    assert resolve("base", None) == folder.resolve()


def test_of_the_hub_no_second_copy_of_the_weights_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "chat_templates/tools.jinja"]
    others = ["consolidated.safetensors", "original/model.safetensors", "metal/model.bin"]
    fetched: list[str] = []

    def download(_: str, revision: str | None, **patterns: Any) -> Path:
        assert revision == "main"
        fetched.extend(filter_repo_objects([*wanted, *others], **patterns))
        return tmp_path

    monkeypatch.setattr(fetching, "snapshot_download", download)
    assert resolve("org/name", "main") == tmp_path
    assert fetched == wanted


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id like org/name"):
        resolve(model, None)


@pytest.mark.parametrize("model", ["org/name", "org/na me", "-org/name"])
def test_what_the_hub_does_not_give_is_refused_with_its_reason(model: str) -> None:
    """Offline, as all tests are."""
    with pytest.raises(CheckpointError, match=r"the hub did not give it.*check the id"):
        resolve(model, None)
