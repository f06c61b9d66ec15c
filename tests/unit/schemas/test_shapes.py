"""What config.json alone says of a model is what the headers of its weight files say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from schemas.errors import CheckpointError
from tests.documents import ROOT
from tests.models import CONFIGS, SIZES, tiny_model
from workers.model.inspection import inspect, read_spec

SHAPES = ROOT / "tests" / "configs"
PARAMETERS = {  # as published, in units of 10^7
    "llama-3-8b": 803,
    "llama-3-70b": 7055,
    "llama-3-405b": 40585,
    "qwen3-32b": 3276,
    "mixtral-8x7b": 4670,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {"tie_word_embeddings": tied}) for family in CONFIGS for tied in (False, True)),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("llama", {"head_dim": 16, "dtype": "bfloat16"}),
    ("mistral", {"num_key_value_heads": 4}),
]


@pytest.mark.parametrize(("family", "fields"), VARIANTS)
def test_config_and_headers_agree(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, family, **fields)
    told, found = read_spec(str(folder), None), inspect(folder)
    assert told.matrices == found.matrices
    read = {t.name: t.model_copy(update={"offset": None}) for t in found.tensors}
    assert {t.name: t for t in told.tensors} == read
    assert told.model_copy(update={"tensors": found.tensors}) == found


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    sizes: dict[str, Any] = SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2}
    config = MixtralConfig(**sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def test_experts_are_left_alone(mixtral: Path) -> None:
    """Their tensors are told of a model in memory, where those of all experts are one."""
    told, found = read_spec(str(mixtral), None), inspect(mixtral)
    stored = load_file(mixtral / "model.safetensors")
    assert {t.name: t.shape for t in found.tensors} == {
        name: tuple(tensor.shape) for name, tensor in stored.items()
    }
    assert told.parameters == found.parameters == sum(t.numel() for t in stored.values())
    assert told.matrices == found.matrices
    assert {m.path for m in found.matrices} == {f"self_attn.{x}_proj" for x in "qkvo"}
    assert len(found.matrices) == 2 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str) -> None:
    spec = read_spec(str(SHAPES / f"{name}.json"), None)
    assert sum(math.prod(t.shape) for t in spec.tensors) // 10**7 == PARAMETERS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"intermediate_size": None}, "'intermediate_size' expected int, got NoneType"),
        ({"dtype": "int4"}, "dtype 'int4' is none of"),
        ({"model_type": "vit"}, "model_type 'vit' is not supported"),
        ({"quantization_config": {}}, "quantised"),
    ],
)
def test_a_config_that_cannot_be_planned_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(json.loads((SHAPES / "llama-3-8b.json").read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_spec(str(path), None)


def test_a_hub_id_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the hub did not give it"):
        read_spec("nobody/nothing", None)
