"""What the load of a checkpoint finds wrong: each check passes, and fails for what it is about."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.checkpoint.conftest import change, configure
from workers.checkpoint import load_check


def test_what_is_saved_has_every_value(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict[str, Any]()
    load_check._load(checkpoint, found, "auto")
    model, save = found["model"], found["model"].save_pretrained
    assert load_check._round_trip(model).startswith("equal values, ")

    def save_another(folder: str) -> None:
        save(folder)
        change(Path(folder), "model.norm.weight", lambda t: t.index_fill(0, torch.tensor(0), 2.0))

    monkeypatch.setattr(model, "save_pretrained", save_another)
    with pytest.raises(AssertionError, match=r"model\.norm\.weight"):
        load_check._round_trip(model)


def test_a_class_may_keep_in_float32_what_is_neither_embedding_nor_factor(checkpoint: Path) -> None:
    found = dict[str, Any]()
    load_check._load(checkpoint, found, torch.bfloat16)
    decoder = found["model"].model
    decoder.norm.float()
    assert load_check._dtype(found["model"]) == "bfloat16"
    for module in (decoder.embed_tokens, decoder.layers[1].self_attn.q_proj):
        module.float()
        with pytest.raises(ValueError, match=r"is not torch\.bfloat16"):
            load_check._dtype(found["model"])
        module.bfloat16()
    decoder.norm.half()
    with pytest.raises(ValueError, match=r"norm\.weight is not torch\.bfloat16"):
        load_check._dtype(found["model"])


@pytest.mark.parametrize(("row", "what"), [(0, "a cache"), (1, "padding")])
def test_a_token_that_a_cache_or_padding_changes_fails(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, row: int, what: str
) -> None:
    found = dict[str, Any]()
    load_check._load(checkpoint, found, "auto")
    model, forward = found["model"], found["model"].forward
    assert load_check._greedy(model) == "batch of 2, 4 greedy tokens"

    @functools.wraps(forward)
    def wrong(*given: Any, **named: Any) -> Any:
        if what == "padding":
            named["attention_mask"] = None
        output = forward(*given, **named)
        if what == "a cache" and named["use_cache"]:
            output.logits = -output.logits
        return output

    monkeypatch.setattr(model, "forward", wrong)
    with pytest.raises(ValueError, match=f"greedy tokens of row {row} differ"):
        load_check._greedy(model)


def test_what_transformers_would_load_with_random_weights_fails(checkpoint: Path) -> None:
    assert load_check._refuses(checkpoint) == "it asks for trust_remote_code"
    configure(checkpoint, transformers_weights=None)
    with pytest.raises(ValueError, match="it loaded, with weights that cannot be right"):
        load_check._refuses(checkpoint)


def test_a_tokenizer_that_needs_code_fails(checkpoint: Path) -> None:
    """Its own, or that of a model type which transformers does not know."""
    assert load_check._tokenizer(checkpoint) == "TokenizersBackend"
    config = json.loads((checkpoint / "config.json").read_text())
    configure(checkpoint, model_type="own")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_check._tokenizer(checkpoint)
    configure(checkpoint, **config)
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_check._tokenizer(checkpoint)
