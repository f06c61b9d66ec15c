"""A model without values: what config.json alone makes transformers build."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from runtime.configuration_lowrank import LowRankConfig
from runtime.modeling_lowrank import LowRankModel
from schemas.errors import CheckpointError
from workers.checkpoint.family import LOW_RANK, PREFIX, Config, family

# What a forward may return beside logits, some of it from within the layers.
_ASIDE = ("output_router_logits", "output_attentions", "output_hidden_states")


def skeleton(config: Config, where: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model of a config.json, named `where` in errors, on the meta device.

    A compressed checkpoint's is built by the classes in `runtime/`; its own code is not run. Raises
    CheckpointError if transformers cannot build the model.
    """
    names = family(config, where)
    library: Any = transformers
    config_class, model_class = getattr(library, names.config), getattr(library, names.model)
    if LOW_RANK in config:
        config_class = type(f"{PREFIX}{names.config}", (LowRankConfig, config_class), {})
        fields = {"config_class": config_class}
        model_class = type(f"{PREFIX}{names.model}", (LowRankModel, model_class), fields)
    try:
        settings: Any = config_class.from_dict(config_class._decode_special_floats(dict(config)))
        is_encoder_decoder = settings.is_encoder_decoder
        for part in (settings, settings.get_text_config(decoder=True)):
            part.use_cache, part.return_dict = False, True
            for name in _ASIDE:
                if hasattr(part, name):
                    setattr(part, name, False)
        with torch.device("meta"):
            model: Any = model_class._from_config(settings, dtype=dtype)
    except ImportError as error:
        raise CheckpointError(f"{where}: transformers needs a package for it ({error})") from error
    except Exception as error:  # transformers may raise anything on a value it does not expect
        raise CheckpointError(
            f"{where}: transformers cannot build the model ({type(error).__name__}: {error}); "
            "correct the file, or fetch it again"
        ) from error
    if is_encoder_decoder:
        raise CheckpointError(
            f"{where}: model_type {settings.model_type!r} is an encoder-decoder model; only "
            "decoders are compressed"
        )
    built: PreTrainedModel = model.eval()
    return built


def resized(
    config: Config, where: str, sizes: Mapping[int, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any] | None:
    """Return a config.json in which some of the numbers that are keys of `sizes` are their values,
    so that its model has the parameters of that of `config`, but these of other `shapes`. None if
    there is none.

    The entries, of a model that sees those of its text decoder, are found by trial: those that are
    such a number, together or alone, or else one that follows from others as long as it is not set.
    """
    wanted, text = {**_shapes(config, where), **shapes}, config.get("text_config")
    entries = text if isinstance(text, dict) else config
    told = skeleton(config, where, torch.bfloat16).config.get_text_config(decoder=True).to_dict()
    for found in itertools.product(*(_named(told, *size) for size in sizes.items())):
        changed = {**entries, **{key: size for part in found for key, size in part.items()}}
        tried = changed if entries is config else {**config, "text_config": changed}
        try:
            if _shapes(tried, where) == wanted:
                return tried
        except CheckpointError:
            continue  # the entry means something else, which cannot have this size
    return None


def _named(told: Config, size: int, new: int) -> list[dict[str, int]]:
    """Return the changes of entries that may make a size another."""
    keys = [key for key, value in told.items() if value == size]
    some = [part for n in range(1, len(keys) + 1) for part in itertools.combinations(keys, n)]
    unset = [(key,) for key, value in told.items() if value is None]
    return [dict.fromkeys(part, new) for part in some or unset]


def _shapes(config: Config, where: str) -> dict[str, tuple[int, ...]]:
    model = skeleton(config, where, torch.bfloat16)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
