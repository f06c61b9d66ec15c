"""Any stock model of transformers with linear layers replaced by low-rank ones."""
# transformers annotates no __init_subclass__, which mypy would report at every class.
# mypy: allow-untyped-calls

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.pytorch_utils import Conv1D

from .configuration_lowrank import (
    BIASES,
    WHOLE,
    LowRankConfig,
    Matrix,
    tensor_parallel_plan,
    tensor_shapes,
)

_DIGITS = re.compile(r"\.\d+\.")
_DENSE = Matrix("dense", None)


class LowRankLinear(nn.Module):
    """y = W' x + bias, (..., n) -> (..., m), with W' stored as `tensor_shapes` says; of a pruned
    one, n or m are what is left of them.

    The factors are real `nn.Linear` children, which quantisers, PEFT and serving engines know.
    `order` is a buffer, not a parameter: engines cast every parameter to the model's dtype.
    """

    down: nn.Linear
    up: nn.Linear
    dense: nn.Linear
    order: torch.Tensor

    def __init__(self, matrix: Matrix, out_features: int, in_features: int, bias: bool) -> None:
        super().__init__()
        self.encoding, self.rank = matrix
        self.shape = out_features, in_features  # of W', where a pruned one has zeros
        shapes = tensor_shapes(*matrix, out_features, in_features, bias)
        if "dense.weight" in shapes:
            out_features, in_features = shapes["dense.weight"]
        self.out_features, self.in_features = out_features, in_features
        for name in ("down", "up", "dense"):
            if f"{name}.weight" in shapes:
                rows, columns = shapes[f"{name}.weight"]
                self.add_module(name, nn.Linear(columns, rows, bias=f"{name}.bias" in shapes))
        if "order" in shapes:
            self.register_buffer("order", torch.arange(*shapes["order"]))
        self.offset = nn.Parameter(torch.zeros(out_features)) if "offset" in shapes else None

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias (m,) of the whole layer, wherever the encoding keeps it."""
        if self.encoding == "pivoted":
            return self.offset
        return self.dense.bias if self.encoding in WHOLE else self.up.bias

    @property
    def weight(self) -> torch.Tensor:
        """W' (m, n) anew, as this layer computes it, for code that reads it and does not call."""
        like = next(self.parameters())
        inputs = torch.eye(self.in_features, dtype=like.dtype, device=like.device)
        zeros = {name: torch.zeros_like(p) for name, p in self.named_parameters() if name in BIASES}
        columns: torch.Tensor = functional_call(self, zeros, (inputs,))
        return columns.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.encoding in WHOLE:
            y: torch.Tensor = self.dense(x)
            return y
        if self.encoding == "pivoted-columns":
            pivots, rest = self.order[: self.rank], self.order[self.rank :]
            z = x.gather(-1, pivots.expand(*x.shape[:-1], -1))
            if len(rest):
                z = z + self.down(x.gather(-1, rest.expand(*x.shape[:-1], -1)))
        else:
            z = self.down(x)
        return self.expand(z)

    def expand(self, z: torch.Tensor) -> torch.Tensor:
        """Return the outputs (..., m) of latents (..., k), which the other factor makes."""
        y: torch.Tensor
        if self.encoding != "pivoted":
            y = self.up(z)
            return y
        rows = z if self.rank == self.out_features else torch.cat((z, self.up(z)), dim=-1)
        # Not index_select, which copies column by column; and not transposed, where gathering
        # is cheap, but the output lies in columns: attention and sums read it slowly.
        y = rows.gather(-1, self.order.expand_as(rows))
        return y if self.offset is None else y + self.offset

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"encoding={self.encoding}, rank={self.rank}"
        )


class SplitLinear(nn.ModuleList):
    """The outputs of several linear layers of the same input, one after the other."""

    @property
    def weight(self) -> torch.Tensor:
        """The weights (m, n) of all, one below the other."""
        parts: Any = self
        return torch.cat([part.weight for part in parts])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self], dim=-1)


def replace_linears(
    model: nn.Module, matrices: dict[str, Matrix], split: dict[str, list[int]]
) -> None:
    """Replace each named linear layer of `model` by a `LowRankLinear` of the same shape, or by one
    for each part of those that are `split`.

    The model may be a part of the one that the names refer to, or have it as a part.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    owners = {end: path for path in linears for end in _ends(path)} | {n: n for n in linears}
    for name in modules_of(matrices, split):
        path = owners.get(name) or next((end for end in _ends(name) if end in linears), None)
        if path is None:
            raise ValueError(
                f"config.low_rank names {name!r}, which is not a linear layer of "
                f"{type(model).__name__}; load the config.json written with the weights"
            )
        old = linears[path]
        rows, columns = old.weight.shape[::-1] if isinstance(old, Conv1D) else old.weight.shape
        parts = {f"{name}.{part}": m for part, m in enumerate(split.get(name, []))} or {name: rows}
        if sum(parts.values()) != rows:
            raise ValueError(
                f"config.low_rank.split says {split[name]} of {name!r}, which has {rows} rows; "
                "load the config.json written with the weights"
            )
        new = [
            LowRankLinear(matrices.get(part, _DENSE), m, columns, old.bias is not None)
            for part, m in parts.items()
        ]
        model.set_submodule(path, SplitLinear(new) if name in split else new[0])


def modules_of(matrices: Iterable[str], split: dict[str, list[int]]) -> list[str]:
    """The linear layers that matrices are, or are parts of, each once."""
    owners = {f"{name}.{part}": name for name in split for part in range(len(split[name]))}
    return list(dict.fromkeys(owners.get(name, name) for name in matrices))


def _is_uneven(model: nn.Module, modules: Iterable[str]) -> bool:
    """Whether a linear layer that is replaced in one layer is as it was in another."""
    replaced = {_DIGITS.sub(".*.", name) for name in modules}
    left = (n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)))
    return any(end in replaced for name in left for end in _ends(_DIGITS.sub(".*.", name)))


def _ends(path: str) -> list[str]:
    """Return a dotted path and all its ends, the longest first."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


class LowRankModel(PreTrainedModel):
    """What all the models share; the base model is one too, as serving engines load it alone.

    The tensors that stay keep the names of the base's files, which may not be those in memory: what
    transformers does to them for the stock class, it does for this one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__name__.startswith("FSDP"):  # FSDP2 makes one for a model that it shards
            whole = next(c for c in cls.__mro__[1:] if issubclass(c, LowRankModel))
            cls.__name__, cls.__module__ = whole.__name__, whole.__module__  # which a save names
        stock: Any = next(c for c in cls.__mro__ if c.__module__.startswith("transformers.models."))
        names = {stock.__name__: cls.__name__, stock.config_class.model_type: None}
        for name, mine in names.items():
            if (conversions := get_checkpoint_conversion_mapping(name)) is not None:
                register_checkpoint_conversion_mapping(mine or name, conversions, overwrite=True)
                return

    def __init__(self, config: LowRankConfig) -> None:
        matrices, split = config.matrices, config.split
        super().__init__(config)
        head = {name: matrix for name, matrix in matrices.items() if not _DIGITS.search(name)}
        if self.get_output_embeddings() is None:
            matrices = {n: m for n, m in matrices.items() if n not in head}
        elif head:  # whose style is that of a class, not of the configuration
            plan = self._tp_plan or {}
            others = {name: style for name, style in plan.items() if name not in head}
            self._tp_plan = tensor_parallel_plan(plan, head) or others
        replace_linears(self, matrices, split)
        if _is_uneven(self, modules_of(matrices, split)):
            self._tp_plan = {}  # a plan names no layers, so it cannot say which ones are low-rank

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize the tables of tokens, as transformers does. Raises ValueError, with nothing
        changed, if the head is low-rank: its factors have no row for each token.
        """
        same = new_num_tokens in (None, self.config.get_text_config().vocab_size)
        cut = isinstance(self.get_output_embeddings(), LowRankLinear)
        if cut and (pad_to_multiple_of or not same):
            raise ValueError(
                "the head is low-rank, so tokens cannot be added; compress without lm_head among "
                "the --targets, or make the model dense (svdllm export --dense)"
            )
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        """Shard a model over processes, as transformers does. Raises ValueError if they cannot
        share its heads equally; ranks and other widths need not divide.
        """
        size = getattr(distributed_config, "tp_size", 1)
        plan = (model.tp_plan or {}).items()
        shared = any("attn" in name and style == "colwise" for name, style in plan)
        for name in ("num_attention_heads", "num_key_value_heads") if shared else ():
            heads = getattr(model.config.get_text_config(), name, None)
            if isinstance(heads, int) and heads % size:
                raise ValueError(
                    f"{name} is {heads}, which {size} processes cannot share equally; "
                    "use a tp_size that divides it"
                )
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)

    def _get_static_cache_init_shape(self) -> Any:
        """Let a static cache take its shape from the first keys if processes share the model: the
        plan, of which transformers would take it, names factors.
        """
        stock: Any = super()
        shared = (getattr(self, "_tp_size", None) or 1) > 1
        return None if shared else stock._get_static_cache_init_shape()
