"""The code shipped in a checkpoint, on tiny random models of every architecture.

The oracle is the stock dense model, each of its matrices overwritten by the product of the factors.
"""

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from runtime.configuration_lowrank import (
    ENCODINGS,
    LowRankConfig,
    Matrix,
    tensor_parallel_plan,
)
from runtime.modeling_lowrank import LowRankModel
from tests.clean import run_clean
from tests.contract import Subject
from tests.low_rank import GREEDY, PROMPTS, TIED, Checkpoint, make_checkpoint
from tests.models import CONFIGS


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One checkpoint of every architecture, the three encodings mixed within and across layers."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {t: make_checkpoint(root / t, t, ENCODINGS) for t in CONFIGS}


@pytest.mark.parametrize("base_type", CONFIGS)
def test_same_model_as_dense(checkpoints: dict[str, Checkpoint], base_type: str) -> None:
    checkpoint = checkpoints[base_type]
    model = checkpoint.load()
    clone = copy.deepcopy(model)

    for each in (model, clone):
        torch.testing.assert_close(each(**PROMPTS).logits, checkpoint.logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(each.generate(**PROMPTS, **GREEDY), checkpoint.tokens)
    head = getattr(model.lm_head, "weight", None)  # a low-rank one has none
    assert (head is model.model.embed_tokens.weight) == TIED[base_type]


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


def test_tensor_parallel_plan_moves_styles_to_the_factors(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    base = {"layers.*.q_proj": "colwise", "layers.*.o_proj": "rowwise", "layers.*.q_norm": "other"}
    plain, dense = Matrix("plain", 4), Matrix("dense", None)
    matrices = {"layers.0.q_proj": plain, "layers.1.q_proj": dense, "layers.0.o_proj": plain}

    assert tensor_parallel_plan(base, matrices) == {
        "layers.*.q_proj.up": "colwise",
        "layers.*.q_proj.down": "colwise_rep",
        "layers.*.q_proj.dense": "colwise",
        "layers.*.o_proj.down": "rowwise",
        "layers.*.o_proj.up": "colwise_rep",
        "layers.*.q_norm": "other",
    }
    rows, columns = Matrix("pivoted", 4), Matrix("pivoted-columns", 4)
    pivoted = {"layers.0.q_proj": columns, "layers.0.o_proj": rows, "layers.0.other": rows}
    assert tensor_parallel_plan(base, matrices | pivoted) == tensor_parallel_plan(base, matrices)
    assert tensor_parallel_plan(base, matrices | {"layers.1.o_proj": columns}) == {}
    assert tensor_parallel_plan(base, matrices | {"layers.1.q_proj": rows}) == {}
    assert checkpoints["llama"].load().tp_plan == {"lm_head": "colwise_gather_output"}
    plan = make_checkpoint(tmp_path / "c", "llama", ("plain",)).load().tp_plan
    assert plan["model.layers.*.self_attn.q_proj.up"] == "colwise"
    assert plan["model.layers.*.mlp.down_proj.down"] == "rowwise"
    assert "model.layers.*.self_attn.q_proj" not in plan
    of_head = make_checkpoint(tmp_path / "d", "mistral", ("plain",)).load().tp_plan
    assert of_head["lm_head.up"] == "colwise_gather_output"
    assert "lm_head" not in of_head


def test_a_model_that_sees_has_the_plan_of_its_text_decoder(tmp_path: Path) -> None:
    subject = Subject("gemma3", tmp_path)
    folder, _ = subject.compressed("plain", 0.3)
    plan = subject.load(folder).tp_plan
    assert plan["model.language_model.layers.*.self_attn.q_proj.up"] == "colwise"
    assert plan["model.language_model.layers.*.mlp.down_proj.down"] == "rowwise"
    assert "model.language_model.layers.*.self_attn.q_proj" not in plan


def test_no_plan_where_a_layer_keeps_what_others_do_not(tmp_path: Path) -> None:
    subject = Subject("llama", tmp_path)
    kept = subject.spec.matrices[1:]
    subject.spec = subject.spec.model_copy(update={"matrices": kept})
    folder, _ = subject.compressed("plain", 0.3)
    assert subject.load(folder).tp_plan == {}


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
    return model

torch.set_num_threads(1)
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
        expected = {"logits": checkpoint.logits, "tokens": checkpoint.tokens, **PROMPTS}
        save_file(expected, f"{checkpoint.folder}.expected")

    run_clean(CLEAN, *(c.folder for c in checkpoints.values()), home=tmp_path)


COLUMNS, ROWS = "pivoted-columns", "pivoted"
SHARDED = {  # q, k, v, o, gate, up, down
    "plain": ("plain",),
    "pivoted": (COLUMNS, COLUMNS, COLUMNS, ROWS, COLUMNS, COLUMNS, ROWS),
    "mixed": (COLUMNS, "plain", "dense", ROWS, "plain", COLUMNS, "plain"),
}
PARALLEL = """
import os, sys
store, rank, *paths = sys.argv[1:]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", HF_HOME=f"{store}.{rank}")

import torch
import torch.distributed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=int(rank), world_size=2
)
shared = DistributedConfig(tp_size=2, tp_plan="auto")
for path in paths:
    model = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=True, distributed_config=shared
    )
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.up.weight.to_local().shape == (16, 13)
    assert len(layer.self_attn.q_proj.down.weight.to_local()) == (7, 6)[int(rank)]
    assert layer.mlp.down_proj.down.weight.to_local().shape == (13, 24)
    # Every matrix is shared, both factors and the embeddings.
    whole, mine = (
        sum(one(p).numel() for n, p in model.named_parameters() if ".weight" in n and p.ndim == 2)
        for one in (lambda p: p, lambda p: p.to_local())
    )
    assert 0.47 < mine / whole < 0.53
    expected = load_file(f"{path}.expected")
    ids, mask = expected["input_ids"], expected["attention_mask"]
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected["logits"], atol=5e-5, rtol=1e-5)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), expected["tokens"])
torch.distributed.barrier()
os._exit(0)  # gloo's threads can abort an interpreter that shuts down around them
""".replace("**GREEDY", f"**{GREEDY}")


@pytest.mark.slow
def test_two_processes_share_a_model(tmp_path: Path) -> None:
    folders = []
    for name, encodings in SHARDED.items():
        checkpoint = make_checkpoint(tmp_path / name, "qwen2", encodings, rank=13)
        expected = {"logits": checkpoint.logits, "tokens": checkpoint.tokens, **PROMPTS}
        save_file(expected, f"{checkpoint.folder}.expected")
        folders.append(checkpoint.folder)

    with ThreadPoolExecutor(2) as ranks:
        for done in [
            ranks.submit(run_clean, PARALLEL, tmp_path / "store", rank, *folders, home=tmp_path)
            for rank in range(2)
        ]:
            done.result()


def test_heads_that_processes_cannot_share_are_refused(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "c", "llama", SHARDED["pivoted"]).load()
    with pytest.raises(ValueError, match=r"num_attention_heads is 4, which 3 processes cannot"):
        model.maybe_distribute_model(model, DistributedConfig(tp_size=3), None)
    with pytest.raises(ValueError, match=r"num_key_value_heads is 2, which 4 processes cannot"):
        model.maybe_distribute_model(model, DistributedConfig(tp_size=4), None)
    assert model.maybe_distribute_model(model, DistributedConfig(tp_size=2), None) is model
