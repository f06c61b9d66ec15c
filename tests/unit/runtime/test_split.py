"""A checkpoint in which some parts of fused matrices are cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from tests.contract import Subject, full_rank_is_the_base
from tests.loads import load_here
from tests.low_rank import make_checkpoint
from workers.checkpoint import verify
from workers.model.inspection import inspect_decoder
from workers.model.layers import Decoder
from workers.model.shard import Shard, Step


def test_parts_of_a_linear_layer_are_matrices_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them: the others are the rows of the base, and nothing is split across devices."""
    subject = Subject("phi3", tmp_path)
    left = {"self_attn.qkv_proj.1", "mlp.gate_up_proj.0", "mlp.gate_up_proj.1"}
    kept = tuple(m for m in subject.spec.matrices if m.path in left)
    subject.spec = subject.spec.model_copy(update={"matrices": kept})
    full_rank_is_the_base(subject)
    folder, _ = subject.compressed("plain", 0.3)
    low_rank = json.loads((folder / "config.json").read_text())["low_rank"]
    assert low_rank["format"] == 2
    assert low_rank["split"]["layers.0.self_attn.qkv_proj"] == [32, 16, 16]
    assert {name.partition(".0.")[2] for name in low_rank["matrices"] if ".0." in name} == left
    model = subject.load(folder)
    assert model.tp_plan == {"lm_head": "colwise_gather_output"}
    fused, base = model.model.layers[1].self_attn.qkv_proj, subject.model.model.layers[1].self_attn
    assert [part.encoding for part in fused] == ["dense", "plain", "dense"]
    rows = base.qkv_proj.weight.split([32, 16, 16])
    assert torch.equal(fused[0].dense.weight, rows[0])
    assert torch.equal(fused[2].dense.weight, rows[2])
    tokens = subject.tokens[:2]
    expected = model(input_ids=tokens).logits
    auto: Any = AutoModel
    body = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    torch.testing.assert_close(model.lm_head(body(tokens).last_hidden_state), expected)
    decoder = Decoder(folder, inspect_decoder(folder), torch.float32, torch.device("cpu"))
    shard = Shard(decoder, range(3), [])
    assert torch.equal(shard.tail(shard.forward(tokens, Step(0, 0))), expected)
    x = torch.randn(2, 3, 32)
    expected = torch.cat((x @ rows[0].T, fused[1](x), x @ rows[2].T), -1)
    torch.testing.assert_close(fused(x), expected)
    load_here(monkeypatch)
    checks = verify._clean_process([str(folder), "part", "100000000"], 300.0)
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    ("number", "rows", "message"),
    [
        (1, [24, 24], "format is 1, this code reads 1, and 2 with a split; use"),
        (2, [8, 8], r"says \[8, 8\] of 'layers.0.mlp.up_proj', which has 48 rows; load"),
    ],
)
def test_a_split_that_cannot_be_followed_is_refused(
    number: int, rows: list[int], message: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", "llama", ("plain",))
    low_rank = {
        "format": number,
        "split": {"layers.0.mlp.up_proj": rows},
        "matrices": {"layers.0.mlp.up_proj.0": {"encoding": "plain", "rank": 3}},
    }
    entries = json.loads((checkpoint.folder / "config.json").read_text()) | {"low_rank": low_rank}
    with pytest.raises(ValueError, match=message):
        checkpoint.code.LowRankLlamaForCausalLM(checkpoint.code.LowRankLlamaConfig(**entries))
