"""What is copied of a base, and what is said and counted of a checkpoint."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.stages.assemble import _no_room, _warn, copy_beside
from schemas.metrics import Metric
from tests import reports
from workers.actors import metrics
from workers.checkpoint.tokenizer_files import TOKENIZERS


def test_whatever_may_be_its_tokenizer_is_copied(tmp_path: Path) -> None:
    base, result = tmp_path / "base", tmp_path / "result"
    parts = ("merges.txt", "emoji.json", "tokenizer_config.json", "chat_template.jinja")
    copied = {*TOKENIZERS, *parts, "LICENSE.txt", "preprocessor_config.json"}
    base.mkdir()
    result.mkdir()
    for name in (*copied, "config.json", "model.safetensors", "README.md", "modeling.py"):
        (base / name).write_text(f'{{"name": "{name}"}}')
    copy_beside(result, base)
    kept = {name: (base / name).read_bytes() for name in copied}
    assert {path.name: path.read_bytes() for path in result.iterdir()} == kept


def test_a_tokenizer_keeps_all_its_chat_templates(model: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": "to {{ messages }}", "tool_use": "with {{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "base")
    assert (tmp_path / "base/additional_chat_templates/tool_use.jinja").is_file()
    copy_beside(result, tmp_path / "base")
    assert AutoTokenizer.from_pretrained(result).chat_template == tokenizer.chat_template


def test_code_that_is_not_copied_is_not_named(tmp_path: Path) -> None:
    """Else the tokenizer of the result would not load for who trusts the code of the model."""
    base, result = tmp_path / "base", tmp_path / "result"
    base.mkdir()
    result.mkdir()
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "eos_token": "e"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "tokenization_own.py").touch()
    (base / "processor_config.json").write_text("no JSON")
    copy_beside(result, base)
    assert {path.name for path in result.iterdir()} == {
        "tokenizer_config.json",
        "processor_config.json",
    }
    assert json.loads((result / "tokenizer_config.json").read_text()) == {"eos_token": "e"}


def test_neurons_that_no_memory_could_order_are_a_fallback() -> None:
    run: Any = SimpleNamespace(spec=SimpleNamespace(wide=("layers.0.mlp",)))
    assert _no_room(run) == ["no room to order the neurons of 1 MLP: they stay"]
    run.spec.wide = ()
    assert _no_room(run) == []


def test_fallbacks_are_logged_and_counted_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted: Counter[tuple[Metric, str]] = Counter()

    def count(metric: Metric, amount: int, kind: str) -> None:
        counted[metric, kind] += amount

    monkeypatch.setattr(metrics, "count", count)
    one, other, *_ = reports.matrices(1)
    fell = [m.model_copy(update={"fallbacks": ("no rank", "in float64")}) for m in (one, other)]
    _warn(reports.compression(tuple(fell), fallbacks=("no room",)))
    assert counted == {(Metric.FALLBACKS, "run"): 1, (Metric.FALLBACKS, "matrix"): 4}
    assert [record.getMessage() for record in caplog.records] == [
        "fallback: no room",
        "fallback in 2 matrices: no rank",
        "fallback in 2 matrices: in float64",
    ]
