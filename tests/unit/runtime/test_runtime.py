"""The code shipped in a checkpoint, on tiny random models of every architecture.

The oracle is the stock dense model, each of its matrices overwritten by the product of the factors.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from runtime.configuration_lowrank import LowRankConfig, Matrix
from runtime.modeling_lowrank import LowRankModel, replace_linears
from tests.clean import run_clean
from tests.kinds import tiny_causal_model
from tests.low_rank import GREEDY, PROMPTS, TIED, Checkpoint, every, make_checkpoint
from tests.models import CONFIGS


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One checkpoint of every architecture, every encoding mixed within and across layers."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {t: make_checkpoint(root / t, t, every(t)) for t in CONFIGS}


@pytest.mark.parametrize("base_type", CONFIGS)
def test_same_model_as_dense(checkpoints: dict[str, Checkpoint], base_type: str) -> None:
    checkpoint = checkpoints[base_type]
    model = checkpoint.load()
    clone = copy.deepcopy(model)

    for each in (model, clone):
        torch.testing.assert_close(each(**PROMPTS).logits, checkpoint.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(each.generate(**PROMPTS, **GREEDY), checkpoint.tokens)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (base_type in TIED)


@pytest.mark.slow
def test_it_is_compiled_whole(checkpoints: dict[str, Checkpoint]) -> None:
    model = checkpoints["llama"].load()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**PROMPTS).logits, model(**PROMPTS).logits)
    torch.compiler.reset()


@pytest.mark.parametrize("base_type", CONFIGS)
def test_dtype_is_kept_and_order_stays_integer(
    checkpoints: dict[str, Checkpoint], base_type: str
) -> None:
    model = checkpoints[base_type].load(dtype=torch.bfloat16)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    orders = [b for name, b in model.named_buffers() if name.endswith(".order")]
    assert orders
    assert {order.dtype for order in orders} == {torch.int64}


def test_gradient_checkpointing_changes_no_gradient(checkpoints: dict[str, Checkpoint]) -> None:
    def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
        model.train()(**PROMPTS, labels=PROMPTS["input_ids"]).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    model = checkpoints["qwen2"].load()
    plain = gradients(model)
    model = checkpoints["qwen2"].load()
    model.activation_checkpointing_enable()
    recomputed = gradients(model)

    assert plain.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(recomputed, plain)


def test_no_token_is_added_to_a_low_rank_head(tmp_path: Path) -> None:
    model: Any = make_checkpoint(tmp_path / "c", "mistral", ("plain",)).load()
    size = model.config.vocab_size
    for asked in ({"new_num_tokens": size + 8}, {"pad_to_multiple_of": 7}):
        with pytest.raises(ValueError, match="the head is low-rank, so tokens cannot be added"):
            model.resize_token_embeddings(**asked)
    assert len(model.get_input_embeddings().weight) == size
    assert model.resize_token_embeddings(size) is model.get_input_embeddings()


@pytest.mark.parametrize("kind", ["falcon_mamba", "mamba", "mamba2"])
def test_layers_whose_training_reads_a_weight_train(kind: str) -> None:
    """Those of state-space models give it to kernels that compute all of a layer."""
    model = tiny_causal_model(kind)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    split = {n: [4, m.out_features - 4] for n, m in linears.items() if n.endswith(".x_proj")}
    cut = [*(n for n in linears if n.endswith(".out_proj")), *(f"{n}.1" for n in split)]
    replace_linears(model, dict.fromkeys(cut, Matrix("plain", 4)), split)
    tokens = torch.arange(3, 11)[None]
    expected = model(tokens).logits
    torch.testing.assert_close(model.train()(tokens).logits, expected)


@pytest.mark.parametrize("base_type", CONFIGS)
def test_the_entries_name_classes_of_the_shipped_files(
    checkpoints: dict[str, Checkpoint], base_type: str
) -> None:
    checkpoint = checkpoints[base_type]
    entries = json.loads((checkpoint.folder / "config.json").read_text())

    for auto, reference in entries["auto_map"].items():
        module, name = reference.split(".")
        assert (checkpoint.folder / f"{module}.py").is_file()
        cls = getattr(checkpoint.code, name)
        assert issubclass(cls, LowRankConfig if auto == "AutoConfig" else LowRankModel)
        config = cls if auto == "AutoConfig" else cls.config_class
        assert config.model_type == base_type


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_rank": None}, "config.low_rank is missing.*load the config.json"),
        (
            {"low_rank": {"format": 3, "matrices": {}}},
            "format is 3, this code reads 1, and 2 ",
        ),
        (
            {"low_rank": {"format": 1, "matrices": {"a.b": {"encoding": "csr", "rank": 3}}}},
            r"\['a.b'\].encoding is 'csr'.*use the code files",
        ),
        (
            {"low_rank": {"format": 1, "matrices": {"a.b": {"encoding": "plain", "rank": 3}}}},
            r"names 'a.b', which is not a linear layer of LowRankLlamaForCausalLM; load",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(
    checkpoints: dict[str, Checkpoint], changes: dict[str, Any], message: str
) -> None:
    checkpoint = checkpoints["llama"]
    entries = json.loads((checkpoint.folder / "config.json").read_text()) | changes

    with pytest.raises(ValueError, match=message):
        checkpoint.code.LowRankLlamaForCausalLM(checkpoint.code.LowRankLlamaConfig(**entries))


def test_config_survives_a_save(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    config = checkpoints["qwen3"].load().config
    assert isinstance(config, LowRankConfig)

    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)

    assert again.matrices == config.matrices
    assert again.base_model_tp_plan == config.base_model_tp_plan


CLEAN = """
import copy, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

def load(auto, path):
    model, info = auto.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    assert not any(v for k, v in info.items() if k != "unexpected_keys"), info
    beside = {key for key in info["unexpected_keys"] if key.startswith("lm_head.")}
    assert set(info["unexpected_keys"]) == (beside if auto is AutoModel else set())
    made = type(model)  # the class of the file: engines compile that, and would miss another
    assert made is getattr(sys.modules[made.__module__], made.__name__), made.__mro__
    return model

try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("loaded without trust_remote_code")
for path in sys.argv[1:]:
    expected = load_file(f"{path}.expected")
    ids, mask = expected["input_ids"], expected["attention_mask"]
    model = load(AutoModelForCausalLM, path)
    tokens = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(tokens, expected["tokens"])
    model.save_pretrained(f"{path}-again")
    for m in (model, copy.deepcopy(model), load(AutoModelForCausalLM, f"{path}-again")):
        logits = m(ids, attention_mask=mask).logits
        torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    hidden = load(AutoModel, path)(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), expected["logits"], atol=1e-5, rtol=1e-5)
ours = {"runtime", "schemas", "workers", "pipeline"}
assert not ours & {name.partition(".")[0] for name in sys.modules}
""".replace("**GREEDY", f"**{GREEDY}")


@pytest.mark.slow
def test_plain_transformers_loads_it(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    for checkpoint in checkpoints.values():
        checkpoint.save_expected()

    run_clean(CLEAN, *(c.folder for c in checkpoints.values()), home=tmp_path)
