"""Whole runs with two workers on models that share nothing but being decoders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from pipeline.compress import compress
from pipeline.request import preflight
from schemas.errors import CheckpointError, ConfigError
from schemas.request.groups import TargetsConfig
from tests.integration.support import ask
from tests.items import local
from tests.kinds import save_kind
from tests.models import tiny_tokenizer
from tests.quantised import to_fp8, to_mxfp4

pytestmark = pytest.mark.usefixtures("local_ray")

KINDS = [
    *("gpt2", "opt", "falcon", "bloom", "phi3", "gemma3", "cohere2", "glm4", "qwen3_5"),
    *("nemotron_h", "deepseek_v3", "gpt_oss", "mistral", "qwen3"),
]
SEEING = {"gemma3", "qwen3_5"}


def tiny(kind: str, folder: Path) -> Path:
    (save_kind(kind, folder) / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_compressed_and_writes(kind: str, text: Path, tmp_path: Path) -> None:
    """The run itself loads the result in a clean process, and pads it there."""
    base = tiny(kind, tmp_path / "base")
    config = ask(base, text, tmp_path / "out", workers=2)
    [output] = compress(config).outputs
    assert output.compression.removed == pytest.approx(0.3, abs=0.01)
    assert (local(output.path) / "preprocessor_config.json").read_text() == "{}"
    checks = {check.name: check.passed for check in output.checks}
    assert checks["neither cache nor padding changes a token"]
    assert checks["continues a text"]
    if kind in SEEING:
        auto: Any = AutoModelForImageTextToText
        model = auto.from_pretrained(local(output.path), trust_remote_code=True)
        tokens = tiny_tokenizer()("The city", return_tensors="pt")["input_ids"]
        written = model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert written.shape == (1, tokens.shape[1] + 4)


def test_an_untested_kind_is_compressed_when_asked_for(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "TESTED", [])
    base = tiny("codegen", tmp_path / "base")
    config = ask(base, text, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"'codegen' is not among the kinds .*--any-architecture"):
        compress(config)
    [output] = compress(config.model_copy(update={"any_architecture": True})).outputs
    assert output.compression.model_type == "codegen"


def test_what_depends_on_the_text_ends_the_run_by_name(text: Path, tmp_path: Path) -> None:
    base = tiny("deepseek_v4", tmp_path / "base")
    config = ask(base, text, tmp_path / "out").model_copy(update={"any_architecture": True})
    with pytest.raises(CheckpointError, match="argument input_ids of layer 0 depends on the text"):
        compress(config)


@pytest.mark.parametrize(("kind", "quantise"), [("qwen3_moe", to_fp8), ("gpt_oss", to_mxfp4)])
def test_a_quantised_base_becomes_bfloat16(
    kind: str, quantise: Callable[[Path], Path], text: Path, tmp_path: Path
) -> None:
    """Experts that are not cut are written as the values that they stand for."""
    base = quantise(tiny(kind, tmp_path / "base"))
    [output] = compress(ask(base, text, tmp_path / "out", dequantize=True)).outputs
    folder = local(output.path)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.int64}
    assert any("experts" in name for name in stored)


def test_only_what_was_chosen_is_cut(text: Path, tmp_path: Path) -> None:
    """Ratios of their own, patterns to ignore, layers that are skipped, and the head."""
    base = tiny("llama", tmp_path / "base")
    config = ask(
        base,
        text,
        tmp_path / "out",
        targets=TargetsConfig(only=("*", "lm_head"), ignore=("v_proj",), skip_last=1),
        ratio_by={"mlp.down_proj": 0.5, "layers.0.self_attn.o_proj": 0.0},
    )
    [output] = compress(config).outputs
    rows = {row.name: row for row in output.compression.matrices}
    down = [row for name, row in rows.items() if name.endswith("mlp.down_proj")]
    others = [row for name, row in rows.items() if not name.endswith("mlp.down_proj")]
    names = set(
        json.loads((local(output.path) / "config.json").read_text())["low_rank"]["matrices"]
    )
    assert "lm_head" in names == set(rows)
    assert not any("v_proj" in name or ".2." in name for name in names)
    assert "layers.0.self_attn.o_proj" not in names
    for group, ratio in ((down, 0.5), (others, 0.3)):
        whole = sum(row.shape[0] * row.shape[1] for row in group)
        kept = sum(row.parameters for row in group)
        rank = max(sum(row.shape) for row in group)  # parameters of one more, at most
        assert (1 - ratio) * whole - rank < kept <= (1 - ratio) * whole
