"""The size of a quantised checkpoint, before it is made."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors import safe_open

from pipeline.export import rotate
from pipeline.stages.weight_files import total_bytes
from schemas.errors import ConfigError
from schemas.model.spec import Factors
from schemas.request.budget import BudgetConfig
from schemas.request.quantization import ROTATED, QuantizationConfig, Scheme
from schemas.run.ranks import AllocationResult
from tests.low_rank import make_checkpoint
from tests.models import tiny_model
from tests.unit.checkpoint.conftest import finish_handmade
from workers.checkpoint.names import SUCCESS
from workers.model.inspection import inspect
from workers.quantisation.files import write_weights
from workers.quantisation.linears import find_linears
from workers.quantisation.rounding import quantised
from workers.quantisation.sizes import base_bytes

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 224,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
SCHEMES: tuple[Scheme, ...] = ("W8A16", "W4A16", "FP8")


def written(folder: Path, output: Path, scheme: Scheme) -> int:
    """Quantise the weights of a checkpoint as `quantize` does; return the bytes of the files."""
    asked = {"checkpoint": str(folder), "scheme": scheme, "output": output}
    if scheme in ROTATED and (folder / SUCCESS).exists():
        rotated = output.with_name(f"{output.name}-rotated")
        rotated.mkdir()
        rotate(folder, rotated, 0, ())
        folder = rotated
    found = find_linears(folder, QuantizationConfig.model_validate(asked))
    output.mkdir()
    write_weights(
        folder,
        output,
        found.tensors,
        lambda name, weight: quantised(weight, found.schemes[name], found.dtype).stored,
    )
    return sum(path.stat().st_size for path in output.glob("*.safetensors"))


def weights(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return list(opened.keys())


def test_what_the_base_takes_in_a_scheme(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "base", **SIZES)
    for scheme in SCHEMES:
        assert base_bytes(inspect(folder), scheme) == written(folder, tmp_path / scheme, scheme)


@pytest.mark.parametrize("factors", ["pivoted", "plain"])
def test_what_a_cut_model_takes_in_a_scheme(tmp_path: Path, factors: Factors) -> None:
    """At 4 bits (224, 96) of rank 40 is rotated factors of rank 64, a square matrix is whole."""
    columns = "pivoted-columns" if factors == "pivoted" else factors
    forms = (columns, columns, columns, factors, columns, columns, "dense")  # from q to down
    made = make_checkpoint(tmp_path / "cut", "llama", forms, rank=40, **SIZES)
    made.dense.save_pretrained(tmp_path / "base")
    (made.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    finish_handmade(made)
    spec = inspect(tmp_path / "base")
    sizes = {"self_attn.k_proj": 16, "mlp.down_proj": None}
    ranks = {matrix.name: sizes.get(matrix.path, 40) for matrix in spec.matrices}
    asked = AllocationResult(
        ratio=0.5, ranks=ranks, budget=0, parameters=0, dense_parameters=0, nats=None, fallbacks=()
    )
    assert {m.encoding(factors) for m in spec.matrices} == {columns, factors}
    for scheme in SCHEMES:
        found = written(made.folder, tmp_path / scheme, scheme)
        assert total_bytes(spec, factors, asked, scheme) == found
    assert any("up_proj.up" in name for name in weights(tmp_path / "W4A16"))
    assert any("q_proj.dense" in name for name in weights(tmp_path / "W4A16"))


def test_a_size_counts_no_bits_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.quantisation.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="compressed-tensors, which is not installed"):
        base_bytes(inspect(tiny_model(tmp_path / "base")), "W4A16")


def test_a_scheme_is_of_a_size() -> None:
    with pytest.raises(ValidationError, match="add --target-size"):
        BudgetConfig.model_validate({"parameters": "1M", "scheme": "W4A16"})
