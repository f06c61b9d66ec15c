"""Loading a whole checkpoint with plain transformers; anything but an exact match is refused."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from schemas.errors import CheckpointError, ConfigError, VerificationError
from schemas.request.evaluation import DeviceMap
from schemas.request.groups import Device, DType
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import auto_class
from workers.checkpoint.own_code import may_run_code
from workers.process.devices import find_device

_BESIDE_WEIGHTS = ("_scale", ".weight_zero_point", ".weight_shape")
_UNEXPECTED = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


def load_model(
    folder: Path,
    dtype: DType,
    device: Device,
    trust_remote_code: bool,
    device_map: DeviceMap | None = None,
) -> PreTrainedModel:
    """Load a checkpoint folder in evaluation mode; device auto is cuda if there is one.

    A `device_map` lays it over all devices instead. Raises CheckpointError if it cannot be read,
    VerificationError if a tensor of the files has no place in the model or the reverse:
    transformers would fill it with random numbers. Raises ConfigError if the device is not there,
    or if the weights compute in another dtype only.
    """
    if device_map and find_spec("accelerate") is None:
        raise ConfigError("device_map needs the package accelerate: pip install accelerate")
    told = read_config(folder)
    stored = (told.get("quantization_config") or {}).get("format") or ""
    if stored.startswith("nvfp4") and dtype not in ("auto", "bfloat16"):
        raise ConfigError(f"{folder}: NVFP4 computes in bfloat16, not {dtype}; use --dtype auto")
    try:
        loaded: Any = getattr(transformers, auto_class(told)).from_pretrained(
            folder,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=may_run_code(folder, trust_remote_code),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except ImportError as error:
        raise ConfigError(
            f"{folder}: transformers needs a package to load it ({error}); for one that is "
            "quantised by `svdllm quantize`, `pip install 'svdllm[quantize]'`"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it ({error}); complete the folder, or allow "
            "trust_remote_code if its model type comes as code that you trust"
        ) from error
    model, info = loaded
    if wrong := {kind: sorted(map(str, info[kind])) for kind in _UNEXPECTED if info[kind]}:
        raise VerificationError(
            f"{folder}: config.json and the weights do not match: "
            + "; ".join(f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in wrong.items())
            + "; write the checkpoint anew, its values would be random there"
        )
    placed: PreTrainedModel = (model if device_map else model.to(find_device(device))).eval()
    return placed


def parameters_of(model: PreTrainedModel) -> int:
    """Return the number of parameters; scales and shapes of quantised weights are none."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.endswith(_BESIDE_WEIGHTS)
    )


def load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint folder; this program never ships code for one.

    Raises CheckpointError if transformers cannot load it.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # a damaged file may raise any error of the libraries below
        raise CheckpointError(
            f"{folder}: no tokenizer that transformers can load ({error}); copy the tokenizer "
            "files of the base model there"
        ) from error
    return tokenizer
