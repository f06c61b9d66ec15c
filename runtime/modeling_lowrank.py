"""Low-rank Llama, Mistral, Qwen2 and Qwen3: the stock models with their linear layers replaced."""
# transformers annotates no __init_subclass__, which mypy would report at every class.
# mypy: allow-untyped-calls

import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from .configuration_lowrank import (
    LowRankConfig,
    LowRankLlamaConfig,
    LowRankMistralConfig,
    LowRankQwen2Config,
    LowRankQwen3Config,
    Matrix,
    tensor_shapes,
)


class LowRankLinear(nn.Module):
    """y = W' x + bias, (..., n) -> (..., m), with W' stored as `tensor_shapes` says.

    The factors are real `nn.Linear` children, which quantisers, PEFT and serving engines know.
    `order` is a buffer, not a parameter: engines cast every parameter to the model's dtype.
    """

    down: nn.Linear
    up: nn.Linear
    dense: nn.Linear
    order: torch.Tensor

    def __init__(self, matrix: Matrix, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.encoding, self.rank = matrix
        shapes = tensor_shapes(*matrix, out_features, in_features, bias)
        for name in ("down", "up", "dense"):
            if f"{name}.weight" in shapes:
                rows, columns = shapes[f"{name}.weight"]
                self.add_module(name, nn.Linear(columns, rows, bias=f"{name}.bias" in shapes))
        if "order" in shapes:
            self.register_buffer("order", torch.arange(out_features))
        self.offset = nn.Parameter(torch.zeros(out_features)) if "offset" in shapes else None

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias (m,) of the whole layer, wherever the encoding keeps it."""
        if self.encoding == "pivoted":
            return self.offset
        return self.dense.bias if self.encoding == "dense" else self.up.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor
        if self.encoding == "dense":
            y = self.dense(x)
        elif self.encoding == "plain":
            y = self.up(self.down(x))
        else:
            z = self.down(x)
            rows = z if self.rank == self.out_features else torch.cat((z, self.up(z)), dim=-1)
            y = rows.index_select(-1, self.order)
            y = y if self.offset is None else y + self.offset
        return y

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"encoding={self.encoding}, rank={self.rank}"
        )


def replace_linears(base_model: nn.Module, matrices: dict[str, Matrix]) -> None:
    """Replace each named `nn.Linear` of `base_model` by a `LowRankLinear` of the same shape."""
    linears = {n: m for n, m in base_model.named_modules() if isinstance(m, nn.Linear)}
    for name, matrix in matrices.items():
        if name not in linears:
            raise ValueError(
                f"config.low_rank names {name!r}, which is not a linear layer of "
                f"{type(base_model).__name__}; load the config.json written with the weights"
            )
        old = linears[name]
        new = LowRankLinear(matrix, old.out_features, old.in_features, old.bias is not None)
        base_model.set_submodule(name, new)


class LowRankModel(PreTrainedModel):
    """What all the models share; the base model is one too, as serving engines load it alone."""

    def __init__(self, config: LowRankConfig) -> None:
        matrices = config.matrices
        super().__init__(config)
        replace_linears(self.base_model, matrices)


class LowRankLlamaModel(LowRankModel, LlamaModel):
    config_class = LowRankLlamaConfig


class LowRankLlamaForCausalLM(LowRankModel, LlamaForCausalLM):
    config_class = LowRankLlamaConfig


class LowRankMistralModel(LowRankModel, MistralModel):
    config_class = LowRankMistralConfig


class LowRankMistralForCausalLM(LowRankModel, MistralForCausalLM):
    config_class = LowRankMistralConfig


class LowRankQwen2Model(LowRankModel, Qwen2Model):
    config_class = LowRankQwen2Config


class LowRankQwen2ForCausalLM(LowRankModel, Qwen2ForCausalLM):
    config_class = LowRankQwen2Config


class LowRankQwen3Model(LowRankModel, Qwen3Model):
    config_class = LowRankQwen3Config


class LowRankQwen3ForCausalLM(LowRankModel, Qwen3ForCausalLM):
    config_class = LowRankQwen3Config
