"""What of a result is data loads without its code, as the base's does; its weights do not."""

import itertools
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.assemble import write_around
from tests.clean import run_clean
from tests.models import CONFIGS, tiny_model

YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What transformers 4 wrote, and what is still read: a type or a rope_type, beside a rope_theta.
SCALINGS = [
    {key: kind} | values
    for kind, values in {"llama3": LLAMA3, "yarn": YARN}.items()
    for key in ("type", "rope_type")
]
TEKKEN = {
    "config": {"pattern": r"\S+|\s+", "default_vocab_size": 259, "default_num_special_tokens": 3},
    "special_tokens": [
        {"rank": rank, "token_str": token} for rank, token in enumerate(("<unk>", "<s>", "</s>"))
    ],
    "vocab": [{"token_bytes": b64encode(bytes([byte])).decode()} for byte in range(256)],
}
CLASSES = ("LlamaTokenizerFast", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", None)

DATA = """
import builtins, sys
import torch
import transformers
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GenerationConfig,
    pipeline,
)

asked = []
builtins.input = asked.append
torch.set_num_threads(1)
pairs = list(zip(sys.argv[2::2], sys.argv[3::2]))
models = pairs[: int(sys.argv[1])]  # the others have the config.json of one of them

def ids(folder, auto=AutoTokenizer, **options):
    tokenizer = auto.from_pretrained(folder, **options)
    text = "The  city, 12345 lies on\\tthe river <|end|> 's"
    return type(tokenizer), tokenizer(text)["input_ids"], tokenizer.all_special_tokens

def refused(load, *arguments):
    try:
        load(*arguments)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError(f"{load} of {arguments} loaded without its code")

for base, result in pairs:
    expected = ids(base)
    assert expected == ids(result) == ids(result, trust_remote_code=False), (expected, ids(result))
    assert expected == ids(result, AutoProcessor)
    config = AutoConfig.from_pretrained(result)
    assert GenerationConfig.from_pretrained(result).eos_token_id == 0
    stock = getattr(transformers, type(config).__name__.replace("Config", "ForCausalLM"))
    if (base, result) in models:
        for auto in (AutoModelForCausalLM, AutoModel, stock):
            refused(auto.from_pretrained, result)
        refused(pipeline, "text-generation", result)
assert not asked, asked
assert not [name for name in sys.modules if name.startswith("transformers_modules")]
for base, result in pairs:
    assert ids(base)[1] == ids(result, trust_remote_code=True)[1]
"""

MODELS = """
tokens = torch.arange(100)[None]
for base, result in models:
    dense = AutoModelForCausalLM.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(result, trust_remote_code=True)
    assert type(model).__name__.startswith("LowRank")
    assert torch.equal(model.model.rotary_emb.inv_freq, dense.model.rotary_emb.inv_freq)
    assert model.model.rotary_emb.attention_scaling == dense.model.rotary_emb.attention_scaling
    assert torch.equal(model(tokens).logits, dense(tokens).logits)
    model.save_pretrained(f"{result}-again")
    refused(AutoModelForCausalLM.from_pretrained, f"{result}-again")
"""


def of_version_4(base: Path, scaling: dict[str, Any]) -> None:
    """Write the config.json of a base as transformers 4 did."""
    path = base / "config.json"
    config = json.loads(path.read_text()) | {"rope_scaling": scaling, "rope_theta": 5e5}
    del config["rope_parameters"]
    path.write_text(json.dumps(config | {"transformers_version": "4.57.1"}))


def result_of(base: Path) -> Path:
    """The result of a run over `base` in which no matrix is compressed."""
    result = base.with_name(f"{base.name}-result")
    result.mkdir()
    write_around(result, base, {}, {}, [])
    shutil.copy(base / "model.safetensors", result)
    return result


def again(base: Path, name: str) -> Path:
    """A copy of a base."""
    return Path(shutil.copytree(base, base.with_name(f"{base.name}-{name}")))


def bases(folder: Path) -> Iterator[Path]:
    for family in CONFIGS:
        yield tiny_model(folder / family, family)
        for number, scaling in enumerate(SCALINGS):
            base = again(folder / family, str(number))
            of_version_4(base, scaling)
            yield base


def tokenizers(folder: Path) -> Iterator[Path]:
    """Of the models above; which class transformers takes depends on their type, too."""
    for family, name in itertools.product(CONFIGS, CLASSES):
        base = again(folder / family, str(name))
        path = base / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
        yield base
    for family in CONFIGS:
        base = again(folder / family, "bare")
        (base / "tokenizer_config.json").unlink()
        yield base
    slow = again(folder / "qwen2", "slow")
    model = json.loads((slow / "tokenizer.json").read_text())["model"]
    (slow / "tokenizer.json").unlink()
    (slow / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (slow / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    yield slow
    tekken = again(folder / "mistral", "tekken")
    (tekken / "tokenizer.json").unlink()
    (tekken / "tokenizer_config.json").unlink()
    (tekken / "tekken.json").write_text(json.dumps(TEKKEN))
    yield tekken


@pytest.mark.slow
def test_every_form_of_base_and_tokenizer(tmp_path: Path) -> None:
    models, others = ([*make(tmp_path)] for make in (bases, tokenizers))
    pairs = [folder for base in (*models, *others) for folder in (base, result_of(base))]
    run_clean(f"{DATA}\n{MODELS}", len(models), *pairs, home=tmp_path)
