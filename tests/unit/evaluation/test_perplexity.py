"""Perplexity against transformers' own loss in float64, and loading that refuses to guess."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from schemas.errors import CheckpointError, ConfigError, NumericsError, VerificationError
from schemas.request.evaluation import EvaluationConfig
from schemas.result.manifest import FORMAT
from tests.models import tiny_model, tiny_tokenizer
from tests.prose import VOCABULARY
from workers.checkpoint.family import family
from workers.checkpoint.own_code import may_run_code, shipped
from workers.evaluation import continuations, perplexity
from workers.model.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"), vocab_size=1000)


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    return load_model(folder, "float32", "cpu", trust_remote_code=False)


@pytest.fixture(scope="module")
def windows() -> Tensor:
    return torch.randint(VOCABULARY, (3, 50), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("positions", [1, 7, 49, 256])
def test_it_is_the_mean_of_transformers_own_loss(
    folder: Path,
    model: PreTrainedModel,
    windows: Tensor,
    positions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perplexity, "_POSITIONS", positions)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        losses = [exact(input_ids=row[None], labels=row[None]).loss for row in windows]
    expected = torch.stack(losses).mean().item()  # every window predicts as many tokens
    loss = perplexity.perplexity(model, windows)
    assert loss.tokens == 3 * 49
    # Float32 logits: about 1e-6 each, and their errors average out.
    assert loss.mean == pytest.approx(expected, rel=2e-6)
    assert loss.perplexity == pytest.approx(math.exp(expected), rel=2e-5)
    assert not math.isclose(loss.perplexity, 1000, rel_tol=0.05)  # the model is no uniform guess


def test_windows_do_not_see_one_another(model: PreTrainedModel, windows: Tensor) -> None:
    parts = [perplexity.perplexity(model, row[None]).nll for row in windows]
    assert perplexity.perplexity(model, windows).nll == sum(parts)


def test_no_float32_copy_of_a_windows_logits(model: PreTrainedModel, windows: Tensor) -> None:
    """Beside the model's own logits, cross entropy sees only as many positions as fit a chunk."""
    seen: list[int] = []
    original = torch.nn.functional.cross_entropy

    def spy(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(scores))
        return original(scores, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", spy)
        patch.setattr(perplexity, "_POSITIONS", 20)
        perplexity.perplexity(model, windows[:1])
    assert seen == [20, 20, 9]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e8])
def test_a_bad_window_is_named_and_never_left_out(
    folder: Path, windows: Tensor, value: float
) -> None:
    broken = load_model(folder, "float32", "cpu", trust_remote_code=False)
    only_in_second = int(next(t for t in windows[1] if t not in windows[0]))
    embedding = broken.get_input_embeddings().get_parameter("weight")
    head = broken.get_parameter("lm_head.weight")
    with torch.no_grad():
        if math.isfinite(value):
            head.mul_(value)
        else:
            embedding[only_in_second] = value
    expected = 0 if math.isfinite(value) else 1
    with pytest.raises(NumericsError, match=rf"window {expected} of 3: mean loss .* dtype float32"):
        perplexity.perplexity(broken, windows)


@pytest.mark.filterwarnings("error")
def test_the_sample_is_greedy_whatever_the_checkpoint_ships(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(folder, "float32", "cpu", trust_remote_code=False)
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    for name, value in (settings | {"repetition_penalty": 1.5}).items():
        setattr(model.generation_config, name, value)
    tokenizer = tiny_tokenizer()
    ids = tokenizer("The statement", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(8):
            best = model(input_ids=ids, use_cache=False).logits[0, -1, :].argmax()
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
    assert int(ids.min()) > 0, "the oracle does not stop at <eos>"
    found = continuations.sample(model, tokenizer, "The statement", 8)
    assert found == tokenizer.decode(ids[0])
    assert not caplog.records


def test_a_tied_model_in_bfloat16_is_evaluated(tmp_path: Path, windows: Tensor) -> None:
    folder = tiny_model(tmp_path, "qwen2", tie_word_embeddings=True)
    tensors = {
        name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = EvaluationConfig(checkpoint=str(folder), device="cpu", sample_tokens=4)
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    row = perplexity.evaluate_checkpoint("tiny", folder, windows, tokenizer, config)
    assert row.perplexity == pytest.approx(math.exp(row.mean_nll))
    assert (row.name, row.windows, row.predicted_tokens) == ("tiny", 3, 147)
    assert row.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert row.stored_dtype == "BF16"
    assert row.bytes_on_disk == (folder / "model.safetensors").stat().st_size
    assert row.sample is not None
    assert row.sample.startswith(config.sample_prompt)
    assert row.generation is not None
    assert len(row.generation.greedy.texts) == len(continuations.PROMPTS)
    assert row.seconds > 0


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, windows: Tensor) -> None:
    folder = tiny_model(tmp_path, vocab_size=100)
    config = EvaluationConfig(checkpoint=str(folder), device="cpu")
    with pytest.raises(CheckpointError, match=r"gives token 38\d, but the model embeds only 100"):
        perplexity.evaluate_checkpoint("tiny", folder, windows, tiny_tokenizer(), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"1 missing_keys, first model\.norm\.weight"),
        ({"model.extra": torch.ones(2)}, r"1 unexpected_keys, first model\.extra"),
        ({"model.norm.weight": torch.ones(5)}, r"1 mismatched_keys, first .*model\.norm\.weight"),
    ],
)
def test_a_checkpoint_loads_exactly_or_not_at_all(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    path = tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(path) | change
    save_file({k: t for k, t in tensors.items() if t is not None}, path, {"format": "pt"})
    with pytest.raises(VerificationError, match=message):
        load_model(tmp_path, "float32", "cpu", trust_remote_code=False)


def test_an_incomplete_folder_is_said_so(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 cut off")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_model(folder, "float32", "cpu", trust_remote_code=False)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_model(folder, "float32", "cpu", trust_remote_code=False)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(folder, trust_remote_code=False)


def test_the_device_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device is cuda, but .* has none that torch"):
        load_model(folder, "auto", "cuda", trust_remote_code=False)
    assert load_model(folder, "bfloat16", "auto", trust_remote_code=False).dtype == torch.bfloat16


FAMILY = family({"model_type": "llama"}, "config.json")


def config_with(auto_map: dict[str, Any]) -> str:
    """config.json of a low-rank checkpoint that names these classes."""
    return json.dumps({"model_type": "llama", "low_rank": {}, "auto_map": auto_map})


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder that claims to be a low-rank checkpoint, with the shipped code."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, content in shipped(FAMILY).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(config_with(FAMILY.entries["auto_map"]))
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    return folder


def test_our_own_code_is_trusted(ours: Path) -> None:
    assert may_run_code(ours, trust_remote_code=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modeling_lowrank.py", "# modeling_lowrank.py\nimport os\n"),
        ("configuration_lowrank.py", None),
        ("modeling_family.py", FAMILY.code + "import os\n"),
        ("modeling_family.py", family({"model_type": "qwen2"}, "config.json").code),
        ("custom_generate/generate.py", "import os\n"),
        ("config.json", config_with({"AutoModel": "evil.Model"})),
        ("config.json", config_with({"AutoModel": "/tmp/modeling_family.M"})),
        ("config.json", config_with({"AutoModel": "o/r--modeling_family.M"})),
        ("config.json", config_with({"AutoModel": ["evil.Model"]})),
    ],
)
def test_any_other_code_is_not(ours: Path, name: str, content: str | None) -> None:
    path = ours / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(
        CheckpointError, match=r"not the code that this version .* trust_remote_code"
    ):
        may_run_code(ours, trust_remote_code=False)
    assert may_run_code(ours, trust_remote_code=True)


def test_a_base_checkpoint_is_never_trusted_by_itself(ours: Path, folder: Path) -> None:
    assert not may_run_code(folder, trust_remote_code=False)
    (ours / "manifest.json").write_text(json.dumps({"format": "other"}))
    assert not may_run_code(ours, trust_remote_code=False)
    (ours / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json: not JSON"):
        may_run_code(ours, trust_remote_code=False)
    (ours / "manifest.json").unlink()
    assert not may_run_code(ours, trust_remote_code=False)


def test_foreign_code_does_not_run(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text("raise RuntimeError('this ran')\n")
    with pytest.raises(CheckpointError, match="allow trust_remote_code"):
        load_model(folder, "float32", "cpu", trust_remote_code=False)
