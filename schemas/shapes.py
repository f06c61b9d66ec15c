"""Every tensor of a model, from config.json alone: no weight file is needed to plan."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from schemas.errors import CheckpointError
from schemas.model import (
    ARCHITECTURES,
    Architecture,
    Dimension,
    MatrixSpec,
    ModelSpec,
    Target,
    TensorSpec,
)

_FILE = "model.safetensors"  # a name by convention: config.json does not know the files
_STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}

Config = Mapping[str, Any]


def family(config: Config, where: str) -> Architecture:
    """The row of ARCHITECTURES of a config.json, named `where` in errors."""
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{where}: the checkpoint is quantised (quantization_config); "
            "compress the original, then quantise the result"
        )
    return ARCHITECTURES[model_type]


def positive(config: Config, key: str, where: str) -> int:
    """A size of a config.json. Raises CheckpointError where it is no whole number above 0."""
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{where}: {key} is {value!r}, not a whole number above 0")
    return value


def model_spec(config: Config, where: str) -> ModelSpec:
    """What `workers.checkpoint.inspect` reads from the files, as config.json says it."""
    architecture = family(config, where)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in _STORED:
        raise CheckpointError(f"{where}: dtype {dtype!r} is none of {', '.join(_STORED)}")
    sizes = _sizes(config, where)
    layers, tied = positive(config, "num_hidden_layers", where), is_tied(config)
    table = (sizes["vocabulary"], sizes["hidden"])
    shapes: dict[str, tuple[int, ...]] = {f"{architecture.embedding}weight": table}
    matrices = []
    for layer in range(layers):
        prefix = architecture.layer.format(layer)
        for name, dimensions in architecture.others.items():
            shapes[f"{prefix}{name}.weight"] = tuple(sizes[one] for one in dimensions)
        for place in places(architecture, layer, config):
            rows, columns = sizes[place.target.rows], sizes[place.target.columns]
            bias = place.target.bias
            biased = bool(config.get(bias, False)) if isinstance(bias, str) else bias
            shapes[f"{architecture.base}{place.name}.weight"] = (rows, columns)
            if biased:
                shapes[f"{architecture.base}{place.name}.bias"] = (rows,)
            matrices.append(place.matrix(rows, columns, biased))
    shapes[f"{architecture.norm}weight"] = (sizes["hidden"],)
    if not tied:
        shapes[f"{architecture.head}weight"] = table
    return ModelSpec(
        model_type=str(config["model_type"]),
        layers=layers,
        hidden_size=sizes["hidden"],
        vocab_size=sizes["vocabulary"],
        dtype=_STORED[dtype],
        tied=tied,
        matrices=tuple(matrices),
        tensors=tuple(
            TensorSpec(name=name, file=_FILE, dtype=_STORED[dtype], shape=shape)
            for name, shape in shapes.items()
        ),
    )


def is_tied(config: Config) -> bool:
    """Whether the head is the embedding."""
    return bool(config.get("tie_word_embeddings", False))


class Place(NamedTuple):
    """One targeted matrix of one layer, by its name below the base model, its shape not known."""

    name: str
    layer: int
    target: Target
    reads: str
    share: float

    def matrix(self, rows: int, columns: int, bias: bool) -> MatrixSpec:
        return MatrixSpec(
            name=self.name,
            layer=self.layer,
            path=self.target.path,
            reads=self.reads,
            out_features=rows,
            in_features=columns,
            bias=bias,
            share=self.share,
        )


def places(architecture: Architecture, layer: int, config: Config) -> Iterator[Place]:
    """The targeted matrices of a layer, in order; those of experts once for each expert."""
    prefix = architecture.layer.format(layer).removeprefix(architecture.base)
    for target in architecture.targets:
        experts = config.get("num_local_experts", 1) if "*" in target.path else 1
        share = config.get("num_experts_per_tok", 1) / experts if experts > 1 else 1.0
        for expert in map(str, range(experts)):
            name, reads = (part.replace("*", expert) for part in (target.path, target.reads))
            yield Place(f"{prefix}{name}", layer, target, reads, share)


def _sizes(config: Config, where: str) -> dict[Dimension, int]:
    hidden, heads = (positive(config, key, where) for key in ("hidden_size", "num_attention_heads"))
    head = config.get("head_dim") or hidden // heads
    return {
        "hidden": hidden,
        "query": heads * head,
        "key": (config.get("num_key_value_heads") or heads) * head,
        "head": head,
        "mlp": positive(config, "intermediate_size", where),
        "vocabulary": positive(config, "vocab_size", where),
        "experts": config.get("num_local_experts", 1),
    }
