"""Headers and tensors with one thing wrong: refused by name, with what to do about it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.kinds import model_class, tiny_causal_model
from tests.models import rewrite, tiny_model
from tests.unit.checkpoint.conftest import NORM, Q_PROJ, WEIGHTS, configure, refusal
from workers.model.inspection import inspect

Entries = dict[str, Any]


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
    "no offsets": (lambda entries: entries[Q_PROJ].pop("data_offsets"), "KeyError: 'data_offsets'"),
    "entry of a list": (lambda entries: entries.update({Q_PROJ: ["F32"]}), "TypeError"),
    "entry of a number": (lambda entries: entries.update({Q_PROJ: 7}), "TypeError"),
    "metadata of numbers": (lambda e: e.update({"__metadata__": {"a": 1}}), "not of strings"),
    "metadata of a list": (lambda e: e.update({"__metadata__": [1]}), "AttributeError"),
    "a gap": (lambda entries: entries.pop(Q_PROJ), "the one before"),
    "nothing, before content": (b"{}", "its tensors end at"),
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
        (Q_PROJ, (2, 4, 8)),
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
    implied = list(load_file(folder / WEIGHTS)[name].shape)
    with_tensors(folder, **{name: torch.zeros(shape)})
    message = refusal(folder)
    assert f"{WEIGHTS}: {name} has shape {list(shape)}, config.json implies {implied}" in message
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
    table = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    with_tensors(folder, **frequencies, lm_head__weight=table.clone())
    assert inspect(folder).tied


def test_the_positions_of_a_vision_tower_are_no_error(tmp_path: Path) -> None:
    """Older versions of transformers saved them; a model that has none refuses them."""
    tiny_causal_model("llava").save_pretrained(tmp_path / "llava")
    positions = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(65)[None]}
    with_tensors(tmp_path / "llava", **positions)
    spec = inspect(tmp_path / "llava")
    assert [t.role for t in spec.tensors if t.name in positions] == ["passing"]
    folder = tiny_model(tmp_path / "llama")
    with_tensors(folder, **positions)
    assert "position_ids is no part of the model" in refusal(folder)


def test_a_head_that_config_json_ties_and_the_files_do_not_is_refused(tmp_path: Path) -> None:
    """transformers would use both."""
    folder = tiny_model(tmp_path, tie_word_embeddings=True)
    with_tensors(folder, lm_head__weight=torch.zeros(384, 32))
    assert "set tie_word_embeddings to false" in refusal(folder)


def test_a_table_that_is_stored_as_the_head_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """transformers takes either name, if config.json ties them."""
    folder = tiny_model(tmp_path, tie_word_embeddings=True)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    message = refusal(folder)
    assert "no tensor model.embed_tokens.weight in the files" in message
    assert message.endswith("rename lm_head.weight, to which config.json ties it, in the files")


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
    assert f"{WEIGHTS}: {owner}." in message
    assert "compress the original, then quantise the result" in message
    configure(folder, quantization_config={"quant_method": "awq"})
    said = "the checkpoint is quantised (awq); compress the original, then quantise the result"
    assert f"config.json: {said}" in refusal(folder)


def test_a_bias_of_another_dtype_than_its_matrix_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen2")
    bias = "model.layers.0.self_attn.q_proj.bias"
    with_tensors(folder, **{bias: torch.zeros(32, dtype=torch.bfloat16)})
    message = refusal(folder)
    assert f"stored in BF16 and F32 ({bias} in BF16, " in message
    assert "convert them to one dtype" in message


def test_a_router_may_have_a_dtype_of_its_own(tmp_path: Path) -> None:
    """As transformers keeps and saves that of hunyuan_v1_moe."""
    kind = "hunyuan_v1_moe"
    tiny_causal_model(kind).save_pretrained(tmp_path / "whole")
    half = model_class(kind).from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    spec = inspect(tmp_path / "half")
    assert spec.dtype == "BF16"
    wider = {tensor.name for tensor in spec.tensors if tensor.dtype == "F32"}
    assert wider
    assert all(".gate.wg." in name for name in wider)
