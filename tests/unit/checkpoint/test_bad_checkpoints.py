"""Checkpoints with one thing wrong: each is refused by name, with what to do about it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import CheckpointError
from tests.models import tiny_model
from workers.checkpoint.config_file import read_spec
from workers.checkpoint.contents import inspect
from workers.checkpoint.fetching import resolve

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Entries = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("whole") / "base")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of one tiny checkpoint."""
    copy = tmp_path / "base"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        inspect(folder)
    return str(caught.value)


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def with_header(folder: Path, change: Callable[[Entries], Any] | bytes) -> None:
    """Give the file another header, its content as it is."""
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if isinstance(change, bytes):
        text = change
    else:
        entries = json.loads(raw[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def with_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    """Add tensors to the file; two underscores in a name stand for a dot."""
    found = load_file(folder / WEIGHTS)
    found |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})


def with_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """An index that maps every tensor to one shard, then changed."""
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    weight_map: dict[str, Any] = dict.fromkeys(
        load_file(folder / "shard.safetensors"), "shard.safetensors"
    )
    change(weight_map)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


# --- headers ----------------------------------------------------------------------------------


def _set(name: str, **fields: Any) -> Callable[[Entries], Any]:
    return lambda entries: entries[name].update(fields)


HEADERS: dict[str, tuple[Callable[[Entries], Any] | bytes, str]] = {
    "overlap": (_set(Q_PROJ, data_offsets=[0, 4096]), "the one before"),
    "beyond the end": (_set(Q_PROJ, data_offsets=[10**9, 10**9 + 4096]), "the one before"),
    "reversed": (_set(Q_PROJ, data_offsets=[4096, 0]), "are not F32"),
    "negative": (_set(Q_PROJ, data_offsets=[-4096, 0]), "no whole number"),
    "offsets of floats": (_set(Q_PROJ, data_offsets=[0.0, 4096.0]), "no whole number"),
    "offsets of booleans": (_set(Q_PROJ, data_offsets=[False, True]), "no whole number"),
    "three offsets": (_set(Q_PROJ, data_offsets=[0, 1, 2]), "ValueError"),
    "negative shape": (_set(Q_PROJ, shape=[-32, -32]), "no whole number"),
    "shape of texts": (_set(Q_PROJ, shape=["32", "32"]), "no whole number"),
    "absurd shape": (_set(Q_PROJ, shape=[2**62, 2**62]), "are not F32"),
    "shape that is none": (_set(Q_PROJ, shape=None), "TypeError"),
    "no dtype": (lambda entries: entries[Q_PROJ].pop("dtype"), "KeyError: 'dtype'"),
    "entry of a number": (lambda entries: entries.update({Q_PROJ: 7}), "TypeError"),
    "metadata of numbers": (lambda e: e.update({"__metadata__": {"a": 1}}), "not of strings"),
    "metadata of a list": (lambda e: e.update({"__metadata__": [1]}), "AttributeError"),
    "a gap": (lambda entries: entries.pop(Q_PROJ), "the one before"),
    "twice": (b'{"a": {}, "a": {}}', "key 'a' twice"),
    "not a number": (b'{"a": NaN}', "NaN is no JSON number"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "a list": (b"[]", "AttributeError|TypeError"),
    "not UTF-8": (b'{"\xff": 1}', "UnicodeDecodeError"),
    "a long number": (b'{"a": ' + b"9" * 5000 + b"}", "ValueError"),
}


@pytest.mark.parametrize(("change", "why"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_readers_would_differ_about_is_refused(
    folder: Path, change: Callable[[Entries], Any] | bytes, why: str
) -> None:
    with_header(folder, change)
    message = refusal(folder)
    assert message.startswith(f"{folder / WEIGHTS}: not a complete safetensors file (")
    assert any(one in message for one in why.split("|")), message
    assert message.endswith("copy or write it anew")


@pytest.mark.parametrize("length", [10**8 + 1, 2**63, 2**64 - 1])
def test_an_absurd_header_is_refused_before_it_is_allocated(folder: Path, length: int) -> None:
    path = folder / WEIGHTS
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    assert f"its header would end at {8 + length}" in refusal(folder)
    if length < 2**40:  # a file that is as long as it says, without taking room on the disk
        os.truncate(path, 8 + length)
        assert f"a header of {length} bytes, 100000000 are the most" in refusal(folder)


def test_a_name_that_a_terminal_would_obey_is_shown_as_its_escape(folder: Path) -> None:
    with_tensors(folder, **{"\x1b]0;x\x07\nerror: y": torch.zeros(1)})
    message = refusal(folder)
    assert r"tensor \x1b]0;x\x07 error: y is no part of the model" in message
    assert message.isprintable()


# --- tensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (Q_PROJ, (16, 64)),
        (Q_PROJ, (32, 33)),
        (NORM, (31,)),
        (NORM, (1, 32)),
        ("model.embed_tokens.weight", (383, 32)),
        ("lm_head.weight", (384, 16)),
        ("model.layers.1.input_layernorm.weight", ()),
    ],
)
def test_a_shape_that_is_not_that_of_the_configuration_is_refused(
    folder: Path, name: str, shape: tuple[int, ...]
) -> None:
    with_tensors(folder, **{name: torch.zeros(shape)})
    message = refusal(folder)
    assert f"{WEIGHTS}: {name} has shape {list(shape)}, config.json implies [" in message
    assert "of one model" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.self_attn.q_proj.weight",
        "model.extra.weight",
        "score.weight",
    ],
)
def test_a_tensor_that_is_no_part_of_the_model_is_refused(folder: Path, name: str) -> None:
    with_tensors(folder, **{name: torch.zeros(32)})
    assert f"tensor {name} is no part of the model" in refusal(folder)


def test_a_head_that_is_not_used_and_frequencies_are_no_error(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, tie_word_embeddings=True)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    with_tensors(folder, **frequencies, lm_head__weight=torch.zeros(384, 32))
    assert inspect(folder).tied


@pytest.mark.parametrize(
    "parts",
    [
        {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16},
        {"weight_packed": torch.int32},
        {"weight_scale_inv": torch.float32},
        {"weight.absmax": torch.uint8},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_packed_weights_are_refused_with_and_without_their_configuration(
    folder: Path, parts: dict[str, torch.dtype]
) -> None:
    owner = Q_PROJ.removesuffix(".weight")
    with_tensors(folder, **{f"{owner}.{k}": torch.zeros(4, dtype=t) for k, t in parts.items()})
    message = refusal(folder)
    assert f"{WEIGHTS}: holds {owner}." in message
    assert "compress the original, then quantise the result" in message
    configure(folder, quantization_config={"quant_method": "awq"})
    assert "config.json: the checkpoint is quantised (awq); compress the orig" in refusal(folder)


def test_a_bias_of_another_dtype_than_its_matrix_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen2")
    bias = "model.layers.0.self_attn.q_proj.bias"
    with_tensors(folder, **{bias: torch.zeros(32, dtype=torch.bfloat16)})
    message = refusal(folder)
    assert f"stored in BF16 and F32 ({bias} in BF16, " in message
    assert "convert them to one dtype" in message


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


def test_an_index_must_name_the_file_that_holds_the_tensor(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    with_index(folder, lambda weight_map: weight_map.update({Q_PROJ: "other.safetensors"}))
    assert f"tensor {Q_PROJ} is not in other.safetensors, which the index names" in refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    save_file({Q_PROJ: torch.zeros(32, 32)}, folder / "other.safetensors")
    with_index(folder, lambda weight_map: weight_map.update({NORM: "other.safetensors"}))
    assert f"{Q_PROJ} is in other.safetensors and in shard.safetensors" in refusal(folder)


def test_a_file_and_an_index_of_others_are_refused(folder: Path) -> None:
    with_index(folder, lambda weight_map: None)
    assert inspect(folder).layers == 2
    (folder / WEIGHTS).write_bytes((folder / "shard.safetensors").read_bytes())
    assert "an index of other files; remove one of them" in refusal(folder)


@pytest.mark.parametrize("value", [None, [], {}, "model.safetensors"])
def test_an_index_without_a_map_is_refused(folder: Path, value: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": value}))
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
    with pytest.raises(CheckpointError, match="a file, where a folder"):
        resolve(str(folder / f"weights{suffix}"), None)


# --- config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "'utf-8' codec"),
        (b"", "Expecting value"),
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
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, 10,000 are the most"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2."),
        ({"num_hidden_layers": 1}, "tensor model.layers.1."),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 10**30}, "vocab_size is 1,000,000"),
        ({"hidden_size": 64}, "implies [384, 64]"),
        ({"num_attention_heads": 3}, "no multiple of num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"num_key_value_heads": 4}, "config.json implies [32, 32]"),
        ({"head_dim": "8"}, "head_dim is '8'"),
        ({"head_dim": 1.5}, "head_dim is 1.5"),
        ({"intermediate_size": [80]}, "intermediate_size is [80]"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', neither true nor"),
        ({"attention_bias": 1}, "attention_bias is 1, neither true nor false"),
        ({"attention_bias": True}, "no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"dtype": ["float32"]}, "dtype ['float32'] is none of float64"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is none of"),
        ({"model_type": ["llama"]}, "is not supported; supported: llama"),
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


def test_a_plan_counts_no_experts_without_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    sizes: dict[str, Any] = {"model_type": "mixtral", "num_hidden_layers": 32}
    sizes |= dict.fromkeys(
        ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"), 8
    )
    for experts, message in ((10**9, "1,000 are the most"), (900, "more than a model has")):
        path.write_text(json.dumps(sizes | {"num_local_experts": experts}))
        with pytest.raises(CheckpointError, match=message):
            read_spec(str(path), None)
