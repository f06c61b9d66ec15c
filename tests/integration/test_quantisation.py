"""`svdllm quantize`: what it publishes loads in plain transformers, and says what it is."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.evaluate import evaluate
from pipeline.quantize import quantize
from pipeline.request.adopt import adopting
from schemas.errors import CheckpointError, ConfigError
from schemas.request.adoption import AdoptionConfig
from schemas.request.evaluation import EvaluationConfig
from schemas.request.quantization import QuantizationConfig
from schemas.result.manifest import Check
from tests.kinds import save_kind
from tests.low_rank import make_checkpoint
from tests.models import tiny_model, tiny_tokenizer
from tests.prose import VOCABULARY
from tests.unit.checkpoint.conftest import finish_handmade
from workers.checkpoint.published import read_compression, read_manifest
from workers.checkpoint.verify import verify_checkpoint
from workers.evaluation.perplexity import stored
from workers.model.loading import load_model
from workers.quantisation.linears import calibrate

TEXT = {"sequence_length": 32, "windows": 2, "sample_tokens": 1}
GATED = ("gate", "up")


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    forms, sizes = ("plain", "pivoted", "dense"), {"num_hidden_layers": 3}
    made = make_checkpoint(tmp_path / "compressed", "llama", forms, **sizes, vocab_size=VOCABULARY)
    (made.folder / "README.md").write_text("---\nlicense: mit\n---\n")
    tiny_tokenizer().save_pretrained(made.folder)
    finish_handmade(made, model="org/base")
    return made.folder


def ask(checkpoint: Path, output: Path, scheme: str, **fields: object) -> QuantizationConfig:
    given = {"checkpoint": str(checkpoint), "output": output, "scheme": scheme}
    return QuantizationConfig.model_validate(given | fields)


def test_factors(compressed: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    gptq = {"calibration": str(text), "calibration_samples": 8, "sequence_length": 64}
    done = quantize(ask(compressed, output, "W4A16", **gptq))
    assert (done.base, done.method, done.tokens) == ("org/base", "GPTQ", 512)
    assert set(done.groups) == {32, None}
    others: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"group_size": 32}]
    for number, other in enumerate(others):
        at = tmp_path / f"other-{number}"
        assert quantize(ask(compressed, at, "W4A16", **gptq, **other)).text == done.text
        assert read_manifest(at).output != read_manifest(output).output
    checks = verify_checkpoint(output, published=True)
    assert all(check.passed for check in checks), checks
    assert "refuses to load without trust_remote_code" in {check.name for check in checks}
    found = read_compression(output)
    assert (found.scheme, found.bytes_after, found.model) == (
        "W4A16",
        done.bytes_after,
        "org/base",
    )
    assert read_manifest(output).base_files == read_manifest(compressed).base_files
    front = yaml.safe_load((output / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["license"]) == ("org/base", "mit")
    assert "has ranks and losses, in float32,\nbefore" in (output / "README.md").read_text()
    assert front["base_model_relation"] == "quantized"
    assert done.restated == {
        "dense": 14
    }  # all that is cut: factors of a rank of 32 would be larger
    assert "0 as rotated factors and 14\nmultiplied out" in (output / "README.md").read_text()
    size, dtypes = stored(output)
    assert dtypes == "F32+I32"
    assert 0 < size - done.bytes_after < 40_000  # headers
    config = json.loads((output / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert len(config["quantization_config"]["config_groups"]) == 2
    with pytest.raises(CheckpointError, match="its factors are quantised"):
        adopting(AdoptionConfig(checkpoint=output, base="org/base", output=tmp_path / "more"))


@pytest.mark.parametrize(("scheme", "anew"), [("W8A16", False), ("W8A8", True), ("FP8", True)])
def test_factors_are_stored_anew_where_the_latents_are_rounded(
    compressed: Path, tmp_path: Path, scheme: str, anew: bool
) -> None:
    done = quantize(ask(compressed, tmp_path / "output", scheme))
    assert bool(done.restated) == anew
    assert all(check.passed for check in verify_checkpoint(tmp_path / "output", published=True))


@pytest.mark.parametrize("calibrated", [False, True])
def test_layers_that_engines_fuse_share_a_scale_of_scales(
    text: Path, tmp_path: Path, calibrated: bool
) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    tensors = load_file(model / "model.safetensors")
    for number, name in enumerate(tensors):
        if "_proj" in name:
            tensors[name] *= 1 + number / 8  # ranges that differ
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    gptq = {"calibration": str(text), "calibration_samples": 4, "sequence_length": 32}
    quantize(ask(model, output, "NVFP4", **gptq) if calibrated else ask(model, output, "NVFP4A16"))
    found = load_file(output / "model.safetensors")

    def scales(layers: str, of: str) -> set[float]:
        stems = (f"model.layers.0.{layer}_proj" for layer in layers.split())
        return {float(found[f"{stem}.{of}_global_scale"]) for stem in stems}

    for fused in ("self_attn.q self_attn.k self_attn.v", "mlp.gate mlp.up"):
        assert len(scales(fused, "weight")) == 1
        assert not calibrated or len(scales(fused, "input")) == 1
    largest = max(tensors[f"model.layers.0.mlp.{one}_proj.weight"].abs().max() for one in GATED)
    assert [*scales("mlp.up", "weight")] == [pytest.approx(448 * 6 / float(largest))]
    assert len(scales("mlp.up mlp.down", "weight")) == 2
    whole = load_model(output, "auto", "cpu", trust_remote_code=False)  # of a float32 base
    assert whole(torch.zeros(1, 2, dtype=torch.long)).logits.isfinite().all()
    with pytest.raises(ConfigError, match="NVFP4 computes in bfloat16, not float32"):
        load_model(output, "float32", "cpu", trust_remote_code=False)


def test_only_the_weights_that_are_loaded_are_quantised(tmp_path: Path) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    before = stored(model)
    shutil.copy(model / "model.safetensors", model / "earlier.safetensors")
    done = quantize(ask(model, output, "W8A16"))
    assert stored(model) == before
    assert done.bytes_before == sum(
        t.nbytes for t in load_file(model / "model.safetensors").values()
    )
    assert [path.name for path in output.glob("*.safetensors")] == ["model.safetensors"]


def test_one_weight_file_that_only_an_index_names_is_found(tmp_path: Path) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    file = "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(model / file)
    names = dict.fromkeys(load_file(model / file), file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    quantize(ask(model, output, "W8A16"))
    assert [path.name for path in output.glob("*.safetensors")] == [file]
    load_model(output, "float32", "cpu", trust_remote_code=False)


def test_the_default_windows_are_no_longer_than_the_model_was_made_for(
    text: Path, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", max_position_embeddings=128)
    gptq = {"calibration": str(text), "calibration_samples": 4}
    assert quantize(ask(model, tmp_path / "output", "W4A16", **gptq)).tokens == 4 * 128


def test_the_model_that_is_calibrated_is_gone_before_another_is_loaded(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its parts refer to one another."""
    seen: list[weakref.ref[Any]] = []

    def load(*given: Any, **named: Any) -> Any:
        model = load_model(*given, **named)
        model.__dict__["itself"] = model
        seen.append(weakref.ref(model))
        return model

    def verify(*_: Any, **__: Any) -> list[Check]:
        assert [model() for model in seen] == [None]
        return []

    monkeypatch.setattr("pipeline.quantize.load_model", load)
    monkeypatch.setattr("pipeline.quantize.verify_checkpoint", verify)
    model = tiny_model(tmp_path / "model")
    gptq = {"calibration": str(text), "calibration_samples": 4, "sequence_length": 32}
    gc.disable()
    try:
        quantize(ask(model, tmp_path / "output", "W4A16", **gptq))
    finally:
        gc.enable()


def test_a_tokenizer_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", vocab_size=100)
    tiny_tokenizer().save_pretrained(model)
    gptq = {"calibration": str(text), "calibration_samples": 4}
    with pytest.raises(CheckpointError, match="but the model embeds only 100"):
        quantize(ask(model, tmp_path / "output", "W4A16", **gptq))


def test_code_that_a_base_came_with_is_left_behind(tmp_path: Path) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    for name in ("modeling_own.py", "tokenizer_own.py"):
        (model / name).write_text("raise SystemExit(1)\n")
    config = json.loads((model / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (model / "config.json").write_text(json.dumps(config | own))
    quantize(ask(model, output, "W8A16"))
    assert not list(output.glob("*.py"))
    assert "auto_map" not in json.loads((output / "config.json").read_text())


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mistral3", "qwen3_5"])
def test_a_base_that_takes_images_keeps_what_it_needs_for_them(kind: str, tmp_path: Path) -> None:
    model, output = save_kind(kind, tmp_path / "model"), tmp_path / "output"
    done = quantize(ask(model, output, "W8A16"))
    checks = verify_checkpoint(output, published=True)
    assert "loads with plain transformers" in {check.name for check in checks}
    assert all(check.passed for check in checks), checks
    before, after = (load_file(folder / "model.safetensors") for folder in (model, output))
    assert len(before.keys() - after.keys()) == len(done.linears)
    loads = "model = AutoModelForImageTextToText.from_pretrained(path)"
    assert loads in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "scheme", "why"),
    [
        ("qwen3_moe", "W4A16", r"transformers does not load it in W4A16 \(.*; take another"),
        ("mamba", "W8A16", "transformers does not load it in W8A16"),
        ("falcon", "W4A16", r"no linear layer of it can be W4A16 \(it is a FalconLinear\)"),
    ],
)
def test_what_would_not_load_is_refused_before_the_work(
    kind: str, scheme: str, why: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("workers.quantisation.linears.read_weights", "pipeline.quantize._calibrated"):
        monkeypatch.setattr(work, lambda *_: pytest.fail("work has begun"))
    seen = {"calibration": str(text), "sequence_length": 32}
    asked = ask(save_kind(kind, tmp_path / "m"), tmp_path / "o", scheme, **seen)
    with pytest.raises(ConfigError, match=why):
        quantize(asked)


def test_the_code_of_a_stranger_is_not_run(compressed: Path, tmp_path: Path) -> None:
    with (compressed / "modeling_lowrank.py").open("a") as code:
        code.write(f"open({str(tmp_path / 'was here')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match=r"modeling_lowrank\.py is not the code"):
        quantize(ask(compressed, tmp_path / "output", "W8A16"))
    assert not (tmp_path / "was here").exists()


def test_a_mixture_of_experts_has_fewer_bits_beside_them(tmp_path: Path) -> None:
    model, output = save_kind("granitemoe", tmp_path / "model"), tmp_path / "output"
    done = quantize(ask(model, output, "FP8"))
    assert {row.name.rpartition(".")[0].rpartition(".")[2] for row in done.linears} == {"self_attn"}


def test_a_layer_that_the_text_does_not_reach_stays(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    unreached = "model.layers.1.mlp.down_proj"

    def all_but_one(model: Any, windows: Any, names: Any, quantise: Any) -> None:
        calibrate(model, windows, [n for n in names if n != unreached], quantise)

    monkeypatch.setattr("workers.quantisation.linears.calibrate", all_but_one)
    gptq = {"calibration": str(text), "calibration_samples": 4, "sequence_length": 32}
    done = quantize(ask(model, output, "W8A16", **gptq))
    assert done.stay == {unreached: "the text does not reach it"}
    assert unreached not in {row.name for row in done.linears}
    before, after = (load_file(folder / "model.safetensors") for folder in (model, output))
    assert torch.equal(before[f"{unreached}.weight"], after[f"{unreached}.weight"])


def test_a_base_and_its_perplexity(text: Path, tmp_path: Path) -> None:
    model, output = tiny_model(tmp_path / "model"), tmp_path / "output"
    done = quantize(ask(model, output, "W8A16"), "org/base")
    assert done.bytes_after < done.bytes_before
    card = (output / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/base"
    assert "\n# base, W8A16\n" in card
    dense, quantised = evaluate(
        EvaluationConfig.model_validate(
            TEXT | {"checkpoint": str(output), "baseline": str(model), "text": str(text)}
        )
    ).models
    assert quantised.perplexity == pytest.approx(dense.perplexity, rel=0.02)
    assert quantised.perplexity != dense.perplexity
    assert quantised.parameters == dense.parameters
    weight = "model.layers.0.mlp.up_proj.weight"
    near = load_model(output, "float32", "cpu", trust_remote_code=False)
    near(torch.zeros(1, 2, dtype=torch.long))  # the first pass takes the weights apart
    exact = load_model(model, "float32", "cpu", trust_remote_code=False).get_parameter(weight)
    [row] = [row for row in done.linears if f"{row.name}.weight" == weight]
    rest = exact.detach() - near.get_parameter(weight).detach()
    assert row.error == pytest.approx(float(rest.norm() / exact.detach().norm()), rel=1e-3)
    with pytest.raises(ConfigError, match="exists; name another folder, or empty it"):
        quantize(ask(model, output, "W8A16"))
    with pytest.raises(ConfigError, match="name another folder, or empty it"):
        quantize(ask(model, output / "config.json", "W8A16"))
