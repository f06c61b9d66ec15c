"""Which layers are quantised, by which names, and with which inputs."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from schemas.errors import CheckpointError, ConfigError
from schemas.request.quantization import QuantizationConfig
from tests.kinds import save_kind
from tests.low_rank import make_checkpoint
from tests.quantised import to_fp8
from workers.model.loading import load_model
from workers.quantisation.linears import calibrate, find_linears


def ask(folder: Path, **fields: object) -> QuantizationConfig:
    defaults = {"checkpoint": str(folder), "scheme": "W4A16", "output": folder / "unused"}
    return QuantizationConfig.model_validate(defaults | fields)


def test_every_linear_layer_of_the_decoder_and_no_other(model: Path) -> None:
    found = find_linears(model, ask(model, ignore="layers.1.mlp"))
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    names = [f"model.layers.{i}.{part}" for i in (0, 1) for part in (*parts, *mlp)]
    assert list(found.schemes) == names[:-3]
    assert found.stay == dict.fromkeys(names[-3:], "left out")
    assert found.elsewhere == ("lm_head",)
    assert found.tensors == {name: f"{name}.weight" for name in names[:-3]}


def test_experts_and_their_router_are_named_as_not_quantised(tmp_path: Path) -> None:
    """Engines have a linear layer for each, and look for its scales otherwise."""
    folder = save_kind("qwen3_moe", tmp_path)
    found, owner = find_linears(folder, ask(folder)), "model.layers.1.mlp"
    assert {f"{owner}.gate", f"{owner}.experts"} < {*found.others}
    [pattern] = (one for one in found.others if one.startswith("re:") and "[.]1[.]" in one)
    assert re.fullmatch(pattern.removeprefix("re:"), f"{owner}.experts.3.up_proj")
    assert not any(name in found.others for name in found.schemes)


def test_factors_are_linear_layers_each_with_groups_of_its_own(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", ("pivoted", "plain", "dense")).folder
    schemes = find_linears(folder, ask(folder)).schemes
    groups = {name.rpartition(".")[2]: set[int | None]() for name in schemes}
    for name, scheme in schemes.items():
        groups[name.rpartition(".")[2]].add(scheme.weights.group_size)
    # The ranks are 12 and 16; inputs are 32 wide, those of down_proj 48.
    assert groups == {"down": {32, None}, "up": {None}, "dense": {32}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ignore": "no.such"}, "'no.such' names no linear layer"),
        ({"ignore": "layers.*"}, "no linear layer of it can be W4A16"),
        (
            {"group_size": 7},
            "--group-size 7 divides the columns of no .* 32 to 80; name one that does",
        ),
    ],
)
def test_a_request_that_means_nothing_is_refused(
    model: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_linears(model, ask(model, **fields))


def test_a_quantised_checkpoint_is_refused(folder: Path) -> None:
    to_fp8(folder)
    with pytest.raises(CheckpointError, match="quantise the one that it was made from"):
        find_linears(folder, ask(folder))


def test_each_layer_is_given_what_quantised_layers_before_it_make(folder: Path) -> None:
    model = load_model(folder, "float32", "cpu", trust_remote_code=False)
    names = list(find_linears(folder, ask(folder)).schemes)
    windows = torch.arange(24).view(2, 12)
    seen: dict[str, Tensor] = {}

    def zeroed(name: str, weight: Tensor, moment: Tensor, largest: Tensor) -> Tensor:
        seen[name] = moment
        assert moment.shape == (weight.shape[1], weight.shape[1])
        assert largest**2 >= moment.diagonal().max()
        return torch.zeros_like(weight)

    calibrate(model, windows, names, zeroed)
    assert list(seen) == names
    layer = "model.layers.0.self_attn."
    assert torch.equal(seen[f"{layer}q_proj"], seen[f"{layer}k_proj"])
    assert seen[f"{layer}o_proj"].abs().max() == 0  # the values were zero by then
    assert all(model.get_parameter(f"{name}.weight").abs().max() == 0 for name in names)
    assert not any(module._forward_pre_hooks for module in model.modules())
