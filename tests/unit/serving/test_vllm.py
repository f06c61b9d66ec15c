"""What is asked of vLLM, and what is made of its answers; a module of the same name stands in."""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.bench import bench
from pipeline.quantize import quantize
from schemas.errors import CheckpointError, ConfigError, WorkerError
from schemas.request.bench import BenchConfig, Workload
from schemas.request.quantization import QuantizationConfig, Scheme
from schemas.result.bench import Timing
from tests.kinds import tiny_causal_model
from tests.loads import load_here
from tests.low_rank import make_checkpoint
from workers.serving.generation import ServedModel
from workers.serving.process import engine
from workers.serving.vllm_model import VllmModel

WORKLOAD = Workload(batch=2, prompt_tokens=5, new_tokens=4)
SMALL: dict[str, Any] = {"engine": "vllm", "batch": "1,2", "prompt_tokens": 5, "new_tokens": 4}


class Llm:
    """Notes what it is made with and asked; a token takes it a second of a clock of its own."""

    made: dict[str, Any]
    asked: list[tuple[list[list[int]], dict[str, Any]]]
    now = 0.0

    def __init__(self, **options: Any) -> None:
        type(self).made, type(self).asked = options, []

    def generate(self, prompts: list[Any], sampling: Any, use_tqdm: bool) -> None:
        assert not use_tqdm
        self.asked.append(([prompt["prompt_token_ids"] for prompt in prompts], sampling.options))
        type(self).now += sampling.options["max_tokens"]


class SamplingParams:
    def __init__(self, **options: Any) -> None:
        self.options = options


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[Llm]:
    module: Any = types.ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams, module.__version__ = Llm, SamplingParams, "0.0.fake"
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("workers.serving.vllm_model.perf_counter", lambda: Llm.now)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "1")  # so that what is set here ends with the test
    return Llm


def request(checkpoint: Path, **fields: Any) -> BenchConfig:
    return BenchConfig(checkpoint=str(checkpoint), **(SMALL | fields))


def test_it_is_asked_for_the_tokens_that_the_clock_counts(llm: type[Llm], model: Path) -> None:
    config = request(model, baseline=str(model), compiled=True)
    served = engine(model, config)
    assert isinstance(served, VllmModel)
    loaded = served.load()
    assert (loaded.engine, loaded.device) == ("vLLM 0.0.fake", "cpu")
    tensors = load_file(model / "model.safetensors").values()
    assert loaded.parameters == sum(tensor.numel() for tensor in tensors)
    assert llm.made["max_model_len"] == 9
    assert llm.made["max_num_seqs"] == 2
    assert not llm.made["enforce_eager"]
    assert not llm.made["enable_prefix_caching"]
    assert llm.made["gpu_memory_utilization"] == 0.85 / 2
    timing = served.measure(WORKLOAD)
    *_, (first, one), (second, all_of_them) = llm.asked
    assert first == second
    assert [len(row) for row in first] == [5, 5]
    assert (one["max_tokens"], all_of_them["max_tokens"]) == (1, 4)
    assert one["ignore_eos"]
    assert timing == Timing(first_token_s=1.0, decode_s=3.0)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "NVFP4A16"])
def test_parameters_are_those_before_they_were_quantised(
    llm: type[Llm], scheme: Scheme, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_here(monkeypatch)
    output = tmp_path / "output"
    quantize(QuantizationConfig(checkpoint=str(model), output=output, scheme=scheme))
    expected = VllmModel(model, request(model)).load().parameters
    assert VllmModel(output, request(output)).load().parameters == expected
    served = ServedModel(output, BenchConfig(checkpoint=str(output), device="cpu", threads=1))
    assert served.load().parameters == expected


def test_what_config_json_leaves_out_is_as_transformers_has_it(
    llm: type[Llm], tmp_path: Path
) -> None:
    tiny_causal_model("gemma3").save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["text_config"]["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    model = VllmModel(tmp_path, request(tmp_path))
    model.load()
    assert model._vocabulary == 262_208


def test_an_answer_that_takes_no_time_is_no_figure(
    llm: type[Llm], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = VllmModel(model, request(model))
    served.load()
    taken = iter([2.0, 1.0, 2.0, 5.0])  # another program slows the first down, once
    monkeypatch.setattr(served, "_seconds", lambda _: next(taken))
    assert served.measure(WORKLOAD) == Timing(first_token_s=2.0, decode_s=3.0)
    monkeypatch.setattr(served, "_seconds", lambda _: 1.0)
    with pytest.raises(WorkerError, match="ask for more --new-tokens"):
        served.measure(WORKLOAD)


def test_foreign_code_does_not_run_in_it(llm: type[Llm], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "c", "llama", ("plain",)).folder
    VllmModel(folder, request(folder)).load()
    assert not llm.made["trust_remote_code"]  # it has no manifest, so is a stranger
    (folder / "manifest.json").write_text('{"format": "svdllm"}')
    VllmModel(folder, request(folder)).load()
    assert llm.made["trust_remote_code"]
    (folder / "latent_cache.py").write_text("")
    with pytest.raises(CheckpointError, match=r"latent_cache\.py is not the code"):
        VllmModel(folder, request(folder)).load()


def test_it_is_refused_where_it_cannot_be_imported(tmp_path: Path) -> None:
    assert "vllm" not in sys.modules
    with pytest.raises(ConfigError, match="vLLM is not installed in this Python; install it"):
        bench(request(tmp_path))


@pytest.mark.parametrize("wrong", [{"device": "cpu"}, {"threads": 2}])
def test_what_it_decides_itself_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="leave both out"):
        request(tmp_path, **wrong)
