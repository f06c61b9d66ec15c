"""An index, a link, a file or a config.json that is wrong is refused by name."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import CheckpointError
from tests.unit.checkpoint.conftest import INDEX, NORM, Q_PROJ, WEIGHTS, configure, refusal
from workers.checkpoint.fetching import resolve
from workers.model.inspection import inspect, read_spec


def with_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """An index that maps every tensor to one shard, then changed."""
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    weight_map: dict[str, Any] = dict.fromkeys(
        load_file(folder / "shard.safetensors"), "shard.safetensors"
    )
    change(weight_map)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# --- the index --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../base/shard.safetensors",
        "/etc/shard.safetensors",
        "sub/shard.safetensors",
        "..",
        "",
        "shard.bin",
        "config.json",
        "shard\n.safetensors",
        "shard\0.safetensors",
        "x" * 300 + ".safetensors",
        7,
        None,
        ["shard.safetensors"],
    ],
)
def test_an_index_cannot_name_what_is_no_weight_file_of_its_folder(
    folder: Path, name: object
) -> None:
    with_index(folder, lambda weight_map: weight_map.update({Q_PROJ: name}))
    message = refusal(folder)
    assert message.startswith(f"{folder / INDEX}: names the file ")
    assert "is no .safetensors file of this folder; fetch the index again" in message


@pytest.mark.parametrize("name", [Q_PROJ, "model.extra.weight"])
def test_an_index_must_name_the_file_that_holds_the_tensor(folder: Path, name: str) -> None:
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    with_index(folder, lambda weight_map: weight_map.update({name: "other.safetensors"}))
    assert f"tensor {name} is not in other.safetensors, which the index names" in refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    save_file({Q_PROJ: torch.zeros(32, 32)}, folder / "other.safetensors")
    with_index(folder, lambda weight_map: weight_map.update({NORM: "other.safetensors"}))
    assert f"{Q_PROJ} is in other.safetensors and in shard.safetensors" in refusal(folder)


def test_a_file_and_an_index_of_others_are_refused(folder: Path) -> None:
    with_index(folder, lambda weight_map: None)
    assert inspect(folder).layers == 2
    (folder / WEIGHTS).write_bytes((folder / "shard.safetensors").read_bytes())
    assert "an index of other files; remove one of them" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", "[]", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {}}'),
        '{"weight_map": "model.safetensors"}',
    ],
)
def test_an_index_without_a_map_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert f"{folder / INDEX}: not an index of safetensors files" in refusal(folder)


# --- the folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    message = refusal(folder)
    assert f"{folder / name}: a link that leads out of the folder, to {outside}" in message
    assert "copy the file into the folder" in message


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights")
    (folder / WEIGHTS).symlink_to("weights")
    assert inspect(folder).layers == 2


def test_a_snapshot_of_the_hub_is_links_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert inspect(snapshot).layers == 2
    (tmp_path / "link").symlink_to(snapshot)
    assert inspect(tmp_path / "link").layers == 2
    (snapshot / "merges.txt").symlink_to("../../../outside")
    assert "merges.txt: a link that leads out of the folder" in refusal(snapshot)


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("absent")
    assert f"{WEIGHTS}: a link to a file that is not there; fetch" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX, "tokenizer.json"])
def test_what_is_no_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{folder / name}: not a plain file; put the file itself there" in refusal(folder)


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert f"{folder / 'config.json'}: cannot be read (Is a directory)" in refusal(folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack"])
def test_weights_of_another_kind_are_refused_with_the_conversion(folder: Path, suffix: str) -> None:
    (folder / WEIGHTS).rename(folder / f"weights{suffix}")
    message = refusal(folder)
    assert f"found weights{suffix}" in message
    assert "from_pretrained(...).save_pretrained(FOLDER)" in message
    with pytest.raises(CheckpointError, match=r"a file, where a folder .* is meant; name "):
        resolve(str(folder / f"weights{suffix}"), None)


# --- config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "'utf-8' codec"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": "\x00"}', "Invalid control character"),
    ],
)
def test_a_config_that_is_no_strict_json_is_refused(folder: Path, text: bytes, why: str) -> None:
    (folder / "config.json").write_bytes(text)
    message = refusal(folder)
    assert message.startswith(f"{folder / 'config.json'}: not JSON (")
    assert why in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, 1,000 are the most"),
        ({"vision_config": {"depths": [100_000]}}, "depths is 100,000, 1,000 are the most"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantised (fp8)"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": math.nan}, "num_hidden_layers is {'__float__': 'NaN'}"),
        ({"vocab_size": 10**30}, "vocab_size is 1,000,000"),
        ({"hidden_size": 64}, "implies [384, 64]"),
        (
            {"num_attention_heads": 3},
            "hidden size (32) is not a multiple of the number of attention heads (3)",
        ),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 4}, "config.json implies [32, 32]"),
        ({"head_dim": "8"}, "head_dim is '8'"),
        ({"head_dim": 1.5}, "head_dim is 1.5"),
        ({"intermediate_size": [80]}, "field 'intermediate_size'"),
        ({"tie_word_embeddings": "false"}, "field 'tie_word_embeddings'"),
        ({"attention_bias": 1}, "field 'attention_bias'"),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"dtype": ["float32"]}, "dtype ['float32'] is none of float64"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is none of"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"low_rank": {}}, "low_rank is there, so this is a compressed checkpoint"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised (bitsandbytes)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised (fp8); compress the orig"),
        ({"quantization_config": []}, "quantised (quantization_config)"),
        ({"compression_config": {"format": "int-quantized"}}, "quantised (compression_config)"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_config_that_the_files_contradict_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    configure(folder, **change)
    found = refusal(folder)
    assert any(one in found for one in message.split("|")), found
    assert str(folder) in found


def test_a_plan_builds_no_experts_without_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    sizes: dict[str, Any] = {"model_type": "mixtral", "num_hidden_layers": 32}
    sizes |= dict.fromkeys(
        ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"), 8
    )
    path.write_text(json.dumps(sizes | {"num_local_experts": 10**9}))
    message = "num_local_experts is 1,000,000,000, 20,000 are the most"
    with pytest.raises(CheckpointError, match=message):
        read_spec(str(path), None)


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{folder}: a folder has no revision v2"):
        resolve(str(folder), "v2")
