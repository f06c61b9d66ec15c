"""The family of a checkpoint: transformers' classes for it, and the code of their low-rank form.

config.json names the family; nothing here knows one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from schemas.errors import CheckpointError
from schemas.model.dtypes import STORED
from workers.checkpoint.quantised import METHODS

LOW_RANK = "low_rank"  # an entry that only compressed checkpoints have
PREFIX = "LowRank"  # of the names of their classes
MODULE = "modeling_family"  # the file of a checkpoint that names the classes of its family

_SEEING = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM")
_OF_LOW_RANK = (LOW_RANK, "auto_map", "transformers_weights")

_SIZE = re.compile(
    r"hidden_size|vocab_size|intermediate_size|head_dim|num_hidden_layers|num_\w*heads|"
    r"n_layers?|n_embd|n_heads?|n_inner|d_model"
)
_QUANTISATIONS = ("quantization_config", "compression_config")
_BLOCK = (128, 128)
_NEEDED = ("hidden_size", "vocab_size", "num_hidden_layers")
# A model is built of these one by one; its layers are described one by one, too.
_COUNTED = re.compile(r"\w*(layer|depth|block|stage|repeat)s?|\w*experts\w*|num_\w+_per_\w+")
_MOST_COUNTED, _MOST_LAYERS = 20_000, 1_000
_MOST_ELEMENTS = 2**31 - 1  # in one dimension

Config = Mapping[str, Any]


class Family(NamedTuple):
    """Names of transformers' classes: the configuration, the base model, and the model with a head.

    `sees` tells whether the model takes images, too.
    """

    config: str
    base: str
    model: str
    sees: bool

    @property
    def code(self) -> str:
        """The content of the file of a compressed checkpoint that names these classes."""
        models = sorted({self.base, self.model})
        names = "".join(f"    {name},\n" for name in sorted({self.config, *models}))
        config = f"{PREFIX}{self.config}"
        classes = [f"class {config}(LowRankConfig, {self.config}):\n    pass\n"]
        for name in models:
            # Only a model with a head has a `generate`, and a direct base that is named so: at the
            # first load, transformers makes another class of any other that has one, and an engine
            # that compiles the class which it was given compiles nothing.
            bases = ("LatentGenerationMixin",) if name == self.model else ()
            inherited = ", ".join((*bases, "LowRankModel", name))
            classes.append(f"class {PREFIX}{name}({inherited}):\n    config_class = {config}\n")
        return (
            f'"""{self.model} of transformers, with linear layers replaced by low-rank ones."""\n\n'
            f"from transformers import (\n{names})\n\n"
            "from .configuration_lowrank import LowRankConfig\n"
            "from .latent_cache import LatentGenerationMixin\n"
            "from .modeling_lowrank import LowRankModel\n\n\n" + "\n\n".join(classes)
        )

    @property
    def entries(self) -> dict[str, Any]:
        """The entries by which config.json of a low-rank checkpoint differs from its base's."""
        model = f"{MODULE}.{PREFIX}{self.model}"
        auto_map = {
            "AutoConfig": f"{MODULE}.{PREFIX}{self.config}",
            "AutoModel": f"{MODULE}.{PREFIX}{self.base}",
            "AutoModelForCausalLM": model,
        }
        return {
            "architectures": [f"{PREFIX}{self.model}"],
            "auto_map": auto_map | (dict.fromkeys(_SEEING, model) if self.sees else {}),
        }


def family(config: Config, where: str) -> Family:
    """Return the family that config.json, named `where` in errors, is of.

    Raises CheckpointError if transformers has no decoder for it, or if a size is none.
    """
    model_type = config.get("model_type")
    known = model_type if isinstance(model_type, str) else ""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(known)
    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(known)
    base = MODEL_MAPPING_NAMES.get(known)
    if base is None or (causal is None and seeing is None):
        raise CheckpointError(
            f"{where}: model_type {model_type!r} is not supported: transformers knows no decoder "
            "of that type that generates text; `svdllm architectures` lists what there is"
        )
    _require_sizes(config, where)
    named = config.get("architectures") or [""]
    asked = str(named[0] if isinstance(named, list) else named).removeprefix(PREFIX)
    model = asked if asked in (causal, seeing) else seeing or causal
    return Family(
        config=CONFIG_MAPPING_NAMES[known],
        base=base if isinstance(base, str) else base[0],
        model=str(model),
        sees=model == seeing,
    )


def auto_class(config: Config) -> str:
    """Return the name of transformers' class that loads a checkpoint with all its parts. Compressed
    ones have one name for all: what they name under it takes images, too, if the base does.
    """
    known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    sees = config.get("model_type") in known and LOW_RANK not in config
    return f"AutoModelFor{'ImageTextToText' if sees else 'CausalLM'}"


def stock(config: Config) -> dict[str, Any]:
    """Return the content of config.json for a compressed model whose matrices are whole again:
    that of transformers' own classes.
    """
    found = {key: value for key, value in config.items() if key not in _OF_LOW_RANK}
    text = found.get("text_config")
    names = [name.removeprefix(PREFIX) for name in found.get("architectures") or ()]
    found |= {"architectures": names} if names else {}
    return found | ({"text_config": stock(text)} if isinstance(text, dict) else {})


def unquantised(config: Config, where: str, dequantize: bool = False) -> dict[str, Any]:
    """Return the content of config.json for weights that are not quantised, or no longer.

    Raises CheckpointError if it says that they are, unless they are to be dequantised and can be.
    """
    dense = {
        key: unquantised(value, where, dequantize) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _QUANTISATIONS
    }
    for key in _QUANTISATIONS:
        if (method := config.get(key)) is None:
            continue
        name = method.get("quant_method", key) if isinstance(method, dict) else key
        if name not in METHODS or not dequantize:
            known = "or its values in bfloat16 with --dequantize"
            rest = known if name in METHODS else "then quantise the result"
            raise CheckpointError(
                f"{where}: the checkpoint is quantised ({name}); compress the original, {rest}"
            )
        dense["dtype"] = "bfloat16"
    return dense


def context_of(config: Config) -> int | None:
    """Return the number of tokens that a model was made for, if config.json says so."""
    text = config.get("text_config")
    part = text if isinstance(text, dict) else config
    found = (part.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((value for value in found if type(value) is int and value > 1), None)


def block_of(config: Config) -> tuple[int, int]:
    """Return the rows and columns that share a scale in an FP8 checkpoint, 128 each by default."""
    method = config.get(_QUANTISATIONS[0])
    block = method.get("weight_block_size") if isinstance(method, dict) else None
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        return block[0], block[1]
    return _BLOCK


def require_base(config: Config, where: str) -> None:
    """Raises CheckpointError if a config.json, named `where`, is a compressed checkpoint's."""
    if LOW_RANK in config:
        raise CheckpointError(
            f"{where}: {LOW_RANK} is there, so this is a compressed checkpoint; name the base that "
            "it was made from"
        )


def dtype_of(config: Config, where: str) -> str:
    """Return safetensors' name of the dtype that config.json says the weights have.

    Raises CheckpointError if it is none that is read.
    """
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    named = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))
    dtype = next(filter(None, named), "float32")
    if not isinstance(dtype, str) or dtype not in STORED:
        raise CheckpointError(
            f"{where}: dtype {dtype!r} is none of {', '.join(STORED)}; convert the checkpoint to "
            "one of these"
        )
    return STORED[dtype]


def _require_sizes(config: Config, where: str) -> None:
    """Raises CheckpointError if a size is not a whole number above 0, or too large for any model.

    Other values are transformers' to judge: these could keep it busy, or fill the memory.
    """
    for key, value in _entries(config):
        sized = _SIZE.fullmatch(key) and not isinstance(value, list)
        if (
            sized
            and (value is not None or key in _NEEDED)
            and (type(value) is not int or value < 1)
        ):
            raise CheckpointError(
                f"{where}: {key} is {value!r}, not a whole number above 0; fetch the file again"
            )
        counted = _COUNTED.fullmatch(key)
        most = _MOST_COUNTED if counted else _MOST_ELEMENTS
        most = _MOST_LAYERS if counted and "expert" not in key else most
        if (counted or sized) and type(value) is int and value > most:
            raise CheckpointError(
                f"{where}: {key} is {value:,}, {most:,} are the most; fetch the file again"
            )


def _entries(config: Config) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)
        elif isinstance(value, list):
            yield from ((key, item) for item in value if type(item) is int and item > 0)
