"""Configurations of low-rank checkpoints, and the format that their `low_rank` entry describes.

    "low_rank": {"format": 1, "matrices": {
        "layers.0.self_attn.q_proj": {"encoding": "pivoted", "rank": 40},
        "layers.0.mlp.down_proj":    {"encoding": "dense",   "rank": null}, ...}}

A matrix is a linear layer of the base model, (out m, in n), named relative to it. It is stored as

    plain    W' = up down              up (m, k), down (k, n)
    pivoted  W' = [down; up down]      the rows taken in `order` (m,), up (m-k, k), down (k, n)
    pivoted-columns
             W' = [up, up down]        of the inputs in `order` (n,), up (m, k), down (k, n-k)
    dense    W' = dense                dense (m, n)
    pruned-rows
             W' = [dense; 0]           dense (k, n), of which only k outputs are computed
    pruned-columns
             W' = [dense, 0]           dense (m, k), which receives k inputs

The pruned ones are the matrices of an MLP that lacks some neurons, which others make up for.

Where the base holds several matrices as one (q, k and v), the entry has format 2, and says how many
rows each part has. The parts are named by their numbers; one that is not among the matrices is
dense.

    "split": {"layers.0.self_attn.qkv_proj": [32, 16, 16], ...}
    "matrices": {"layers.0.self_attn.qkv_proj.0": {"encoding": "plain", "rank": 12}, ...}

The model type is that of the base, which is all that transformers asks before it loads a tokenizer:
tokenizers are the base's own and need no code. `transformers_weights` is where transformers' own
classes look for the weights of that type; they refuse what it says, where random weights would do.
"""
# transformers annotates no __init_subclass__, which mypy would report at every class.
# mypy: allow-untyped-calls

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

FORMAT = 1
SPLIT_FORMAT = 2  # where matrices are parts of those of the base
ENCODINGS = ("plain", "pivoted", "pivoted-columns", "dense", "pruned-rows", "pruned-columns")
WHOLE = ("dense", "pruned-rows", "pruned-columns")  # that are one matrix, not two
NEEDS_CODE = "low-rank factors, which load with trust_remote_code=True"
BIASES = ("up.bias", "offset", "dense.bias")  # where each of them keeps the bias of the layer

# By a word in the style of a plan: the factor that takes the style, the other one, and the encoding
# that ranks cannot share.
_SPLIT = {"colwise": ("up", "down", "pivoted"), "rowwise": ("down", "up", "pivoted-columns")}
_GATHERED = "colwise_rep"  # rows cut, outputs gathered; transformers has had this name the longest


class Matrix(NamedTuple):
    """How one linear layer is stored; the rank of a dense one is None, that of a pruned one the
    number of its outputs or inputs that are left.
    """

    encoding: str
    rank: int | None


def guarded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json that transformers' own classes refuse: also those that load the
    text decoder of a model that sees, whose configuration is a part of it.
    """
    guard = {"transformers_weights": NEEDS_CODE}
    text = config.get("text_config")
    return {**config, **guard, **({"text_config": text | guard} if isinstance(text, dict) else {})}


def tensor_shapes(
    encoding: str, rank: int | None, out_features: int, in_features: int, bias: bool
) -> dict[str, tuple[int, ...]]:
    """Names, relative to the matrix, and shapes of the tensors that store it.

    All are floating point but the int64 `order`. Of a pivoted matrix, output i is row order[i] of
    [down; up down] x; with full row rank it has no `up`. If columns are the pivots, `up` multiplies
    x[order[:k]] + down x[order[k:]]; with full column rank it has no `down`.
    """
    m, n = out_features, in_features
    shapes: dict[str, tuple[int, ...]]
    if encoding == "dense" and rank is None:
        shapes = {"dense.weight": (m, n), "dense.bias": (m,)}
    elif encoding == "plain" and rank is not None and 1 <= rank <= min(m, n):
        shapes = {"down.weight": (rank, n), "up.weight": (m, rank), "up.bias": (m,)}
    elif encoding == "pivoted" and rank is not None and 1 <= rank <= min(m, n):
        up = {"up.weight": (m - rank, rank)} if rank < m else {}
        shapes = {"down.weight": (rank, n), **up, "order": (m,), "offset": (m,)}
    elif encoding == "pivoted-columns" and rank is not None and 1 <= rank <= min(m, n):
        down = {"down.weight": (rank, n - rank)} if rank < n else {}
        shapes = {**down, "up.weight": (m, rank), "order": (n,), "up.bias": (m,)}
    elif encoding == "pruned-rows" and rank is not None and 1 <= rank <= m:
        shapes = {"dense.weight": (rank, n), "dense.bias": (rank,)}
    elif encoding == "pruned-columns" and rank is not None and 1 <= rank <= n:
        shapes = {"dense.weight": (m, rank), "dense.bias": (m,)}
    else:
        raise ValueError(
            f"a matrix of shape ({m}, {n}) cannot have encoding {encoding!r} and rank {rank}; "
            f"use plain, pivoted or pivoted-columns with a rank in 1..{min(m, n)}, pruned-rows in "
            f"1..{m}, pruned-columns in 1..{n}, or dense with rank None"
        )
    return {name: s for name, s in shapes.items() if bias or not name.endswith(BIASES)}


def parse_low_rank(low_rank: Mapping[str, Any] | None) -> dict[str, Matrix]:
    """The matrices of a `low_rank` entry; ValueError where this code cannot read it."""
    if low_rank is None:
        raise ValueError(
            "config.low_rank is missing: nothing says which matrices are low-rank; "
            "load the config.json that was written with the weights"
        )
    if low_rank.get("format") != (SPLIT_FORMAT if "split" in low_rank else FORMAT):
        raise ValueError(
            f"config.low_rank.format is {low_rank.get('format')!r}, this code reads {FORMAT}, and "
            f"{SPLIT_FORMAT} with a split; use the code files that were written with the weights"
        )
    matrices = {name: Matrix(**entry) for name, entry in low_rank["matrices"].items()}
    for name, matrix in matrices.items():
        if matrix.encoding not in ENCODINGS:
            raise ValueError(
                f"config.low_rank.matrices[{name!r}].encoding is {matrix.encoding!r}, "
                f"not one of {ENCODINGS}; use the code files that were written with the weights"
            )
    return matrices


def tensor_parallel_plan(
    base_plan: Mapping[str, str], matrices: Mapping[str, Matrix], split: Collection[str] = ()
) -> dict[str, str]:
    """`base_plan` (module pattern -> style) with the styles moved to the children to be split.

    The patterns may be of a part of the model that the names of `matrices` refer to.
    colwise splits the rows of `up` and rowwise the columns of `down`. The rows of the other factor
    are split, too, and its outputs gathered: the few of `down`, or what all would receive anyway.
    A matrix of another style is replicated. A matrix whose pivots are on the side that is split
    would mix what ranks hold, so one of them empties the plan; so does one whose parts are
    matrices, which need not divide as the whole does.
    """
    if split:
        return {}
    plan = dict(base_plan)
    for name, matrix in matrices.items():
        pattern = plan_pattern(base_plan, name)
        style = base_plan.get(pattern, "")
        plan.pop(pattern, None)
        side = next((side for side in _SPLIT if side in style), None)
        if side is None:
            continue
        factor, other, mixing = _SPLIT[side]
        if matrix.encoding == mixing:
            return {}
        if matrix.encoding in WHOLE:
            plan[f"{pattern}.dense"] = style
        else:
            plan |= {f"{pattern}.{factor}": style, f"{pattern}.{other}": _GATHERED}
    return plan


def plan_pattern(base_plan: Mapping[str, str], name: str) -> str:
    """Return the pattern of a plan that a matrix falls under; "" if none does."""
    parts = re.sub(r"\.\d+\.", ".*.", name).split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in base_plan), "")


class LowRankConfig(PreTrainedConfig):
    """What all configurations share: the `low_rank` entry and the plan that follows from it.

    `low_rank` may be None here, as transformers builds default configurations; a model refuses it.
    """

    low_rank: dict[str, Any] | None = None
    latent_cache: bool = False  # whether generate() keeps latents instead of keys and values

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("transformers_weights", None)  # it is for classes that know no factors
        super().__post_init__(**kwargs)
        if self.low_rank is None:
            return
        for config in {id(one): one for one in (self, self.get_text_config())}.values():
            # transformers declares the plan of a class, but reads and never saves an instance's.
            config.base_model_tp_plan = tensor_parallel_plan(  # type: ignore[misc]
                config.base_model_tp_plan or {}, self.matrices, self.split
            )

    def to_dict(self) -> dict[str, Any]:
        """What is saved, which transformers' own classes must refuse again."""
        return guarded(super().to_dict())

    @property
    def matrices(self) -> dict[str, Matrix]:
        """The low-rank matrices by name, relative to the base model."""
        return parse_low_rank(self.low_rank)

    @property
    def split(self) -> dict[str, list[int]]:
        """How many rows each part has of the linear layers whose parts are matrices."""
        return dict((self.low_rank or {}).get("split", {}))
