"""Low-rank checkpoints of every architecture, made by hand, and the dense models they equal."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from runtime.configuration_lowrank import WHOLE, Matrix, guarded, tensor_shapes
from workers.checkpoint.family import MODULE, family
from workers.checkpoint.own_code import shipped
from workers.truncation.encoding import padded

TIED = {"llama", "qwen3"}
EVERY = (
    *("plain", "pivoted", "pivoted-columns", "dense", "plain", "pivoted", "pivoted-columns"),
    *("dense", "plain", "pivoted", "pivoted-columns", "pruned-rows", "pruned-rows"),
    "pruned-columns",
)
"""Every encoding, for the 7 matrices of each of two layers: the MLP of the second is pruned."""
WITH_HEAD = {"mistral"}  # whose head is low-rank, too
FORMS = EVERY[:7]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "dtype": "float32",
}
PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 0, 5, 9, 11], [7, 3, 8, 2, 40, 6]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
}
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}


class Checkpoint(NamedTuple):
    """A low-rank checkpoint made by hand, and what the dense model of the same weights says."""

    folder: Path
    dense: PreTrainedModel
    logits: Tensor  # (2, 6, vocabulary)
    tokens: Tensor  # (2, 11)

    @property
    def code(self) -> ModuleType:
        """Its classes, from the file that names them, over the files of this repository."""
        path = self.folder / f"{MODULE}.py"
        name = "runtime." + "_".join(path.with_suffix("").parts[1:]).replace(".", "_")
        if name not in sys.modules:
            spec: Any = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    def load(self, **options: Any) -> Any:
        """The model by its own class, without remote code; raises unless every key fits."""
        [name] = json.loads((self.folder / "config.json").read_text())["architectures"]
        cls = getattr(self.code, name)
        model, info = cls.from_pretrained(self.folder, output_loading_info=True, **options)
        assert not any(info.values()), info
        return model

    def save_expected(self) -> None:
        """Write what the dense model says beside the folder, for a process of its own."""
        expected = {"logits": self.logits, "tokens": self.tokens, **PROMPTS}
        save_file(expected, f"{self.folder}.expected")


def every(base_type: str) -> tuple[str, ...]:
    """Every encoding for a model of two layers; a head that is low-rank has plain factors."""
    return (*(("plain",) if base_type in WITH_HEAD else ()), *EVERY)


def random_factors(matrix: Matrix, linear: nn.Linear) -> tuple[dict[str, Tensor], Tensor]:
    """Random tensors for a matrix in the shape of `linear`, and the weight W' (m, n) they store."""
    shapes = tensor_shapes(
        *matrix, linear.out_features, linear.in_features, linear.bias is not None
    )
    tensors = {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    if matrix.encoding in WHOLE:
        shape = linear.out_features, linear.in_features
        return tensors, padded(tensors["dense.weight"], *shape)
    if "order" in shapes:
        tensors["order"] = torch.randperm(*shapes["order"])
    if matrix.encoding == "pivoted-columns":
        up = tensors["up.weight"]
        product = up @ tensors["down.weight"] if "down.weight" in tensors else up[:, :0]
        return tensors, torch.cat((up, product), dim=1)[:, tensors["order"].argsort()]
    down = tensors["down.weight"]
    product = tensors["up.weight"] @ down if "up.weight" in tensors else down[:0]
    if matrix.encoding == "plain":
        return tensors, product
    return tensors, torch.cat((down, product))[tensors["order"]]


@torch.no_grad()
def make_checkpoint(
    folder: Path, base_type: str, encodings: tuple[str, ...], rank: int = 12, **overrides: Any
) -> Checkpoint:
    """Write a checkpoint whose decoder matrices take the encodings in turn, the head the first.

    `overrides` are fields of its configuration.
    """
    torch.manual_seed(0)
    sizes = SIZES | {"tie_word_embeddings": base_type in TIED}
    config = AutoConfig.for_model(base_type, **(sizes | overrides))
    dense = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    for parameter in dense.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)  # no bias stays 0, no norm stays 1
    matrices: dict[str, Matrix] = {}
    stored: dict[str, Tensor] = {}
    turns = itertools.cycle(encodings)
    head = [("lm_head", dense.lm_head)] if base_type in WITH_HEAD else []
    for name, linear in (*head, *dense.model.layers.named_modules(prefix="layers")):
        if isinstance(linear, nn.Linear):
            encoding = next(turns)
            wanted = 16 if "k_proj" in name else rank
            matrices[name] = Matrix(encoding, None if encoding == "dense" else wanted)
            tensors, weight = random_factors(matrices[name], linear)
            linear.weight.copy_(weight)
            for key in tensors.keys() & {"up.bias", "offset", "dense.bias"}:
                linear.bias.copy_(padded(tensors[key], linear.out_features))
            prefix = "" if name == "lm_head" else "model."
            stored |= {f"{prefix}{name}.{key}": tensor for key, tensor in tensors.items()}
    untouched = {
        key: tensor.clone()
        for key, tensor in dense.state_dict().items()
        if key.removeprefix("model.").rpartition(".")[0] not in matrices
        and not (base_type in TIED and key == "lm_head.weight")
    }
    low_rank = {"format": 1, "matrices": {name: m._asdict() for name, m in matrices.items()}}
    told = json.loads(dense.config.to_json_string(use_diff=False))
    names = family(told, "config.json")
    entries = guarded({**told, **names.entries, "low_rank": low_rank})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(entries))
    save_file(stored | untouched, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in shipped(names).items():
        (folder / name).write_bytes(content)
    tokens = dense.generate(**PROMPTS, **GREEDY)
    return Checkpoint(folder, dense, dense(**PROMPTS).logits, tokens)
