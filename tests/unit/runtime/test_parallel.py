"""A checkpoint that several processes share: which plan it has, and what they compute with it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.distributed.configuration_utils import DistributedConfig

from runtime.configuration_lowrank import Matrix, tensor_parallel_plan
from tests.clean import run_clean
from tests.contract import Subject
from tests.low_rank import EVERY, GREEDY, make_checkpoint
from tests.models import tiny_model
from workers.model.inspection import inspect


def test_tensor_parallel_plan_moves_styles_to_the_factors(tmp_path: Path) -> None:
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
    mixed = make_checkpoint(tmp_path / "m", "llama", EVERY).load().tp_plan
    assert mixed == {"lm_head": "colwise_gather_output"}
    plan = make_checkpoint(tmp_path / "c", "llama", ("plain",)).load().tp_plan
    assert plan["model.layers.*.self_attn.q_proj.up"] == "colwise"
    assert plan["model.layers.*.mlp.down_proj.down"] == "rowwise"
    assert "model.layers.*.self_attn.q_proj" not in plan
    of_head = make_checkpoint(tmp_path / "d", "mistral", ("plain",)).load().tp_plan
    assert of_head["lm_head.up"] == "colwise_gather_output"
    assert "lm_head" not in of_head
    by_rows = ("pivoted", *["plain"] * 14)  # the head, then what two layers hold
    without_head = make_checkpoint(tmp_path / "e", "mistral", by_rows).load().tp_plan
    assert without_head["model.layers.*.self_attn.q_proj.up"] == "colwise"
    assert not any("lm_head" in name for name in without_head)


def test_a_head_is_pivoted_on_the_side_that_its_plan_leaves(tmp_path: Path) -> None:
    head = inspect(tiny_model(tmp_path / "model")).head
    assert head is not None
    assert head.encoding("pivoted") == "pivoted-columns"


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
    for how in ({}, {"cache_implementation": "static", "prefill_chunk_size": 4}):
        how["disable_compile"] = True
        found = model.generate(ids, attention_mask=mask, **GREEDY, **how)
        assert torch.equal(found, expected["tokens"]), how
model = AutoModelForCausalLM.from_pretrained(
    paths[0], trust_remote_code=True, distributed_config=DistributedConfig(fsdp_size=2)
)
assert type(model).__mro__[1].__name__ == "FSDPModule"
saved = f"{store}-saved"
model.save_pretrained(saved)
torch.distributed.barrier()
assert not {n for n in os.listdir(saved) if n.endswith(".py")} - set(os.listdir(paths[0]))
again = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)
expected = load_file(f"{paths[0]}.expected")
with torch.no_grad():
    logits = again(expected["input_ids"], attention_mask=expected["attention_mask"]).logits
torch.testing.assert_close(logits, expected["logits"], atol=5e-5, rtol=1e-5)
torch.distributed.barrier()
os._exit(0)  # gloo's threads can abort an interpreter that shuts down around them
""".replace("**GREEDY", f"**{GREEDY}")


@pytest.mark.slow
def test_two_processes_share_a_model(tmp_path: Path) -> None:
    folders = []
    for name, encodings in SHARDED.items():
        checkpoint = make_checkpoint(tmp_path / name, "qwen2", encodings, rank=13)
        checkpoint.save_expected()
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
