"""The files of a quantised checkpoint: weights one file at a time, and config.json."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import compressed_tensors  # type: ignore[import-untyped]
from compressed_tensors.quantization import (  # type: ignore[import-untyped]
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from safetensors import safe_open
from torch import Tensor

from schemas.result.output import OutputFile, OutputTensor
from workers.checkpoint.config_file import read_config
from workers.checkpoint.contents import weight_files
from workers.checkpoint.family import LOW_RANK, stock
from workers.checkpoint.names import CONFIG
from workers.storage.files import write_json
from workers.storage.tensorfile import NAMES, entries, write_tensors

Store = Callable[[str, Tensor], Mapping[str, Tensor]]
"""Returns what is stored in the place of a layer's weight: its name in the model, its weight."""


def write_weights(
    source: Path, folder: Path, tensors: Mapping[str, str], store: Store
) -> tuple[int, list[OutputFile]]:
    """Write the weight files of `source` again, with what is stored of each linear layer in place
    of its weight; `tensors` has the name of that weight in the files. Return the bytes of all
    tensors before, and the files. One of them is in memory at a time.
    """
    layers = {tensor: name for name, tensor in tensors.items()}
    before, files = 0, list[OutputFile]()
    for file in weight_files(source):
        content: dict[str, Tensor] = {}
        with safe_open(source / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = opened.get_tensor(name)
                before += tensor.nbytes
                if name in layers:
                    stem = name.removesuffix("weight")
                    found = store(layers[name], tensor).items()
                    content |= {f"{stem}{tail}": value for tail, value in found}
                else:
                    content[name] = tensor
        write_tensors(folder / file, entries(content))
        there = (
            OutputTensor(name=name, dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape))
            for name, tensor in content.items()
        )
        files.append(OutputFile(name=file, tensors=tuple(there)))
    return before, files


def read_weights(source: Path, tensors: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield each linear layer's name in the model with its weight, one after the other."""
    layers = {tensor: name for name, tensor in tensors.items()}
    for file in weight_files(source):
        with safe_open(source / file, framework="pt") as opened:
            for name in layers.keys() & opened.keys():
                yield layers[name], opened.get_tensor(name)


def write_config(
    source: Path, folder: Path, schemes: Mapping[str, QuantizationScheme], others: list[str]
) -> None:
    """Write config.json with the scheme of every linear layer; `others` are all that are not
    quantised. Layers of one scheme are named by their class, those of several by their names. The
    values of NVFP4 come as bfloat16, so everything else is to be loaded as that, too.
    """
    groups: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme.model_dump_json(), []).append(name)
    found = {
        f"group_{number}": schemes[names[0]].model_copy(
            update={"targets": ["Linear"] if len(groups) == 1 else names}
        )
        for number, names in enumerate(groups.values())
    }
    [stored] = {str(scheme.format.value) for scheme in schemes.values()}
    quantization = QuantizationConfig(
        config_groups=found,
        format=stored,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=others,
    )
    told = read_config(source)
    config = told if LOW_RANK in told else stock(told)
    if stored.startswith("nv"):
        for part in filter(None, (config, config.get("text_config"))):
            part.pop("torch_dtype", None)
            part["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "version": compressed_tensors.__version__,
        **quantization.model_dump(mode="json"),
    }
    write_json(folder / CONFIG, config)
