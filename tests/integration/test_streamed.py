"""A streamed evaluation says what one in memory says, and the KL of the two distributions."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from pipeline.evaluate import evaluate
from schemas.errors import CheckpointError, NumericsError
from schemas.request.evaluation import EvaluationConfig
from schemas.result.evaluation import EvaluationReport
from schemas.result.manifest import FORMAT
from tests.low_rank import FORMS, make_checkpoint
from tests.models import tiny_model, tiny_tokenizer
from tests.prose import VOCABULARY

LAYERS, LENGTH, WINDOWS = 3, 64, 6
FLOAT32 = 2e-6  # of a mean over tokens, whatever the order in which products were added
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "one worker": ("llama", {"workers": 1}),
    "two workers": ("mistral", {"workers": 2}),
    "two waves of two": ("llama", {"workers": 2, "shard_layers": 1}),
    "three waves of one": ("mistral", {"workers": 1, "shard_layers": 1}),
}


class Pair(NamedTuple):
    """A dense model, a low-rank one of its shape, and what both say in memory."""

    base: Path
    small: Path
    config: EvaluationConfig
    report: EvaluationReport
    kl: float


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Pair]:
    return {
        family: make_pair(tmp_path_factory.mktemp(family), family, text)
        for family in ("llama", "mistral")
    }


def make_pair(folder: Path, family: str, text: Path) -> Pair:
    sizes: dict[str, Any] = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    sizes |= {"sliding_window": 16} if family == "mistral" else {}
    base, small = tiny_model(folder / "base", family, **sizes), folder / "small"
    made = make_checkpoint(small, family, FORMS, **sizes)
    tiny_tokenizer().save_pretrained(small)
    (small / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    config = EvaluationConfig(
        checkpoint=str(small),
        baseline=str(base),
        text=str(text),
        sequence_length=LENGTH,
        windows=WINDOWS,
        device="cpu",
        sample_tokens=1,
    )
    ids = tiny_tokenizer()(text.read_text("utf-8"), verbose=False)
    windows = torch.tensor(ids["input_ids"][: WINDOWS * LENGTH]).view(WINDOWS, LENGTH)
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    with torch.no_grad():
        p, q = (
            model(windows).logits[:, :-1].log_softmax(-1) for model in (dense, made.dense.double())
        )
    kl = functional.kl_div(q, p, reduction="sum", log_target=True) / (WINDOWS * (LENGTH - 1))
    return Pair(base, small, config, evaluate(config), float(kl))


def streamed(config: EvaluationConfig, **fields: Any) -> EvaluationReport:
    asked = config.model_dump(exclude={"sample_prompt", "sample_tokens"})
    return evaluate(EvaluationConfig(**(asked | {"streamed": True} | fields)))


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_those_of_whole_models(
    shape: str, pairs: dict[str, Pair], local_ray: None, tmp_path: Path
) -> None:
    family, cluster = SHAPES[shape]
    pair = pairs[family]
    report = streamed(pair.config, work_dir=tmp_path, **cluster)
    for found, expected in zip(report.models, pair.report.models, strict=True):
        assert found.mean_nll == pytest.approx(expected.mean_nll, rel=FLOAT32)
        measured = {"mean_nll", "perplexity", "kl", "seconds", "tokens_per_second"}
        measured |= {"sample", "generation"}
        assert found.model_dump(exclude=measured) == expected.model_dump(exclude=measured)
    assert [model.kl for model in report.models] == [None, pytest.approx(pair.kl, rel=1e-5)]
    assert not list(tmp_path.iterdir())  # what waited between waves


def test_a_value_that_is_not_finite_is_an_error(
    pairs: dict[str, Pair], local_ray: None, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pairs["llama"].base, broken)
    tensors = load_file(broken / "model.safetensors")
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[0] = torch.finfo(weight.dtype).max  # finite, but what is computed with it is not
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericsError, match=r"broken, window 0 of 6: mean loss nan"):
        streamed(pairs["llama"].config, checkpoint=str(broken), baseline=None, workers=1)


def test_code_that_is_not_ours_is_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(pairs["llama"].small, changed)
    with (changed / "modeling_lowrank.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(CheckpointError, match=r"modeling_lowrank\.py is not the code"):
        streamed(pairs["llama"].config, checkpoint=str(changed))
