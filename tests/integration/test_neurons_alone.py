"""Runs by neurons alone: what they leave dense, and what they measure."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from pipeline.compress import compress
from pipeline.export import export
from pipeline.request.again import at_ratios
from schemas.request.export import ExportConfig
from schemas.request.groups import AllocationConfig
from tests.integration.conftest import Reference
from tests.integration.support import KINDS, ask, item_attempts, read_compression, weight_sums
from tests.items import local
from tests.kinds import save_kind, tiny_causal_model
from tests.models import tiny_model


def test_neurons_alone_leave_every_other_matrix_dense(
    local_ray: None, text: Path, tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base")
    config = ask(base, text, tmp_path / "output", ratio=0.3, method="neurons")
    (output,) = compress(config).outputs
    assert all(check.passed for check in output.checks)
    done = read_compression(output)
    assert done.targeted_after <= 0.7 * done.targeted_before
    cut = [row for row in done.matrices if row.encoding != "dense"]
    assert {row.encoding for row in cut} == {"pruned-rows", "pruned-columns"}
    assert all(".mlp." in row.name for row in cut)
    assert done.fallbacks == ()
    items = [key for kind in KINDS for key in item_attempts(config.run_folder, kind)]
    layers = 2  # of each: a moment of its neurons and one of gradients, an order, three matrices
    made = Counter(key.partition("/")[0] for key in items)
    assert made == {"moments": 2 * layers, "neurons": layers, "factors": len(cut)}
    less = ExportConfig(checkpoint=str(config.run_folder), output=tmp_path / "less", ratio=(0.2,))
    (other,) = compress(at_ratios(less)).outputs
    assert read_compression(other).targeted_after > done.targeted_after


def test_what_neurons_alone_measured_serves_a_run_that_needs_more(
    reference: Reference, tmp_path: Path
) -> None:
    before = reference.config.model_copy(
        update={
            "output": tmp_path / "alone",
            "run_dir": tmp_path / "run",
            "allocation": AllocationConfig(method="loss-aware-neurons"),
        }
    )
    compress(before)
    kept = item_attempts(before.run_folder, "moments", "neurons")
    asked = {"output": tmp_path / "both", "run_dir": before.run_dir}
    (output,) = compress(reference.config.model_copy(update=asked)).outputs
    after = item_attempts(before.run_folder, "moments", "neurons")
    assert kept.items() < after.items()
    assert weight_sums(local(output.path)) == weight_sums(local(reference.output.path))


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        ("phi3", "intermediate_size"),
        ("gemma3", "intermediate_size"),
        ("gpt2", "n_inner"),
        ("qwen2_moe", "shared_expert_intermediate_size"),
    ],
)
def test_one_width_is_a_stock_model(
    kind: str, width: str, local_ray: None, text: Path, tmp_path: Path
) -> None:
    """Gate and up may be one matrix, which may be transposed and biased, and the width an entry of
    the part that reads text, or that of experts which all tokens share.
    """
    base = save_kind(kind, tmp_path / "base")
    (output,) = compress(ask(base, text, tmp_path / "output", ratio=0.2, method="width")).outputs
    done, folder = read_compression(output), local(output.path)
    kept = {row.rank for row in done.matrices if row.is_pruned}
    asked = ExportConfig(checkpoint=str(folder), output=tmp_path / "stock", dense=True)
    stock = export(asked)
    assert stock.parameters == done.parameters_after < done.parameters_before
    auto: Any = AutoModelForImageTextToText if kind == "gemma3" else AutoModelForCausalLM
    cut = auto.from_pretrained(folder, trust_remote_code=True).eval()
    plain = auto.from_pretrained(stock.path).eval()
    assert kept == {getattr(plain.config.get_text_config(), width)}
    assert type(plain).__name__ == type(tiny_causal_model(kind)).__name__
    tokens = torch.arange(3, 35).view(2, 16)
    assert torch.equal(plain(input_ids=tokens).logits, cut(input_ids=tokens).logits)
