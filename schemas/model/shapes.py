"""Every tensor of a model, from config.json alone: no weight file is needed to plan."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from schemas.errors import CheckpointError
from schemas.model.architectures import ARCHITECTURES, Architecture, Dimension, Target
from schemas.model.dtypes import STORED
from schemas.model.spec import MatrixSpec, ModelSpec, TensorSpec

_FILE = "model.safetensors"  # a name by convention: config.json does not know the files
_MOST = {"num_hidden_layers": 10_000, "num_local_experts": 1_000}
_MOST_ELEMENTS = 2**31 - 1  # in one dimension

LOW_RANK = "low_rank"  # an entry that only compressed checkpoints have

Config = Mapping[str, Any]


def require_base(config: Config, where: str) -> None:
    """Raises CheckpointError if a config.json, named `where`, is a compressed checkpoint's."""
    if LOW_RANK in config:
        raise CheckpointError(
            f"{where}: {LOW_RANK} is there, so this is a compressed checkpoint; name the base that "
            "it was made from"
        )


def family(config: Config, where: str) -> Architecture:
    """Return the row of ARCHITECTURES for a config.json, named `where` in errors."""
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    for key in ("quantization_config", "compression_config"):
        if (method := config.get(key)) is not None:
            name = method.get("quant_method", key) if isinstance(method, dict) else key
            raise CheckpointError(
                f"{where}: the checkpoint is quantised ({name}); "
                "compress the original, then quantise the result"
            )
    return ARCHITECTURES[model_type]


def positive(config: Config, key: str, where: str, default: int | None = None) -> int:
    """Return a size in a config.json, or `default` if it has none.

    Raises CheckpointError if it is not a whole number above 0, or too large for any model.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"{where}: {key} is {value!r}, not a whole number above 0; fetch the file again"
        )
    if value > (most := _MOST.get(key, _MOST_ELEMENTS)):
        raise CheckpointError(
            f"{where}: {key} is {value:,}, {most:,} are the most; fetch the file again"
        )
    return value


def switch(config: Config, key: str, where: str, default: bool = False) -> bool:
    """Return a yes or no in a config.json. Raises CheckpointError if it is neither."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(
            f"{where}: {key} is {value!r}, neither true nor false; correct the file"
        )
    return value


def model_spec(config: Config, where: str) -> ModelSpec:
    """Derive from config.json what `workers.checkpoint.contents.inspect` reads from the files."""
    architecture = family(config, where)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in STORED:
        raise CheckpointError(
            f"{where}: dtype {dtype!r} is none of {', '.join(STORED)}; convert the checkpoint to "
            "one of these"
        )
    sizes = _sizes(config, where)
    layers = positive(config, "num_hidden_layers", where)
    tied = switch(config, "tie_word_embeddings", where)
    experts = Experts(sizes["experts"], positive(config, "num_experts_per_tok", where, 1))
    if layers * experts.number > _MOST["num_hidden_layers"]:
        raise CheckpointError(
            f"{where}: {layers:,} layers of {experts.number:,} experts are more than a model has; "
            "fetch the file again"
        )
    table = (sizes["vocabulary"], sizes["hidden"])
    shapes: dict[str, tuple[int, ...]] = {f"{architecture.embedding}weight": table}
    matrices = []
    for layer in range(layers):
        prefix = architecture.layer.format(layer)
        for name, dimensions in architecture.others.items():
            shapes[f"{prefix}{name}.weight"] = tuple(sizes[one] for one in dimensions)
        for place in places(architecture, layer, experts):
            rows, columns = sizes[place.target.rows], sizes[place.target.columns]
            bias = place.target.bias
            biased = switch(config, bias, where) if isinstance(bias, str) else bias
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
        dtype=STORED[dtype],
        tied=tied,
        matrices=tuple(matrices),
        tensors=tuple(
            TensorSpec(name=name, file=_FILE, dtype=STORED[dtype], shape=shape)
            for name, shape in shapes.items()
        ),
    )


class Place(NamedTuple):
    """One targeted matrix of one layer, named as below the base model, without its shape."""

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


class Experts(NamedTuple):
    """The number of experts in a layer, and how many of them see each token."""

    number: int
    chosen: int


def places(architecture: Architecture, layer: int, experts: Experts) -> Iterator[Place]:
    """Yield the targeted matrices of a layer, in order; an expert's once for each expert."""
    prefix = architecture.layer.format(layer).removeprefix(architecture.base)
    for target in architecture.targets:
        count = experts.number if "*" in target.path else 1
        share = experts.chosen / count if count > 1 else 1.0
        for expert in map(str, range(count)):
            name, reads = (part.replace("*", expert) for part in (target.path, target.reads))
            yield Place(f"{prefix}{name}", layer, target, reads, share)


def _sizes(config: Config, where: str) -> dict[Dimension, int]:
    hidden, heads = (positive(config, key, where) for key in ("hidden_size", "num_attention_heads"))
    keys = positive(config, "num_key_value_heads", where, heads)
    if heads % keys:
        raise CheckpointError(
            f"{where}: num_attention_heads is {heads}, no multiple of num_key_value_heads, {keys}; "
            "fetch the file again"
        )
    head = positive(config, "head_dim", where, max(1, hidden // heads))
    return {
        "hidden": hidden,
        "query": heads * head,
        "key": keys * head,
        "head": head,
        "mlp": positive(config, "intermediate_size", where),
        "vocabulary": positive(config, "vocab_size", where),
        "experts": positive(config, "num_local_experts", where, 1),
    }
