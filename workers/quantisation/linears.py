"""The linear layers of a checkpoint that are quantised, and how they are calibrated."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from schemas.errors import CheckpointError, ConfigError, NumericsError
from schemas.request.quantization import QuantizationConfig
from schemas.run.targets import ROUTERS, matches
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import dtype_of, unquantised
from workers.checkpoint.names import CONFIG
from workers.model.inspection import inspect_decoder
from workers.model.reading import Places
from workers.model.skeleton import skeleton
from workers.quantisation.files import read_weights
from workers.quantisation.rounding import has_scale_of_scales
from workers.quantisation.schemes import scheme_for
from workers.storage.tensorfile import DTYPES

Quantise = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""Quantises a layer: its name, its weight (m, n), the moment (n, n) of its inputs, and the largest
magnitude among them. Returns the weight that the rest of the model is calibrated with.
"""


class Linears(NamedTuple):
    """The scheme of each linear layer by its name in the model, the name of the tensor of each in
    the files, and why others of the decoder's stay; `elsewhere` are those outside the decoder's
    layers, and what in them multiplies without being one: routers, and experts that are one tensor.
    `dtype` is that of the checkpoint.
    """

    schemes: dict[str, Any]
    tensors: dict[str, str]
    stay: dict[str, str]
    elsewhere: tuple[str, ...]
    dtype: torch.dtype

    @property
    def others(self) -> list[str]:
        """All that is not quantised."""
        return sorted([*self.stay, *self.elsewhere])


def find_linears(folder: Path, config: QuantizationConfig) -> Linears:
    """Find the linear layers of the decoder's layers, in a base as in a compressed checkpoint.

    Raises CheckpointError if it is quantised already or cannot be read, ConfigError if a pattern
    names no linear layer, none is left, or none has groups of the size that is asked for.
    """
    where = str(folder / CONFIG)
    entries = read_config(folder)
    try:
        unquantised(entries, where)
    except CheckpointError as error:
        raise CheckpointError(
            f"{where}: the checkpoint is quantised; quantise the one that it was made from"
        ) from error
    spec = inspect_decoder(folder)
    model = skeleton(entries, where, torch.bfloat16)
    modules = dict(model.get_submodule(spec.path).named_modules(prefix=spec.path))
    linears = {name: module for name, module in modules.items() if type(module) is nn.Linear}
    _require_used(config.ignore, linears)
    places, named = Places(model), {}
    for tensor in spec.tensors:
        place, converted = places.of(tensor.name)
        if not converted and (name := place.removesuffix(".weight")) in linears:
            named[name] = tensor.name
    outside = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in modules
    )
    others = {name: one for name, one in modules.items() if not isinstance(one, nn.Linear)}
    multiply = (said for name, one in others.items() for said in _multiply(name, one))
    found = Linears({}, {}, {}, (*outside, *multiply), DTYPES[dtype_of(entries, where)])
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and name not in linears:
            found.stay[name] = f"it is a {type(module).__name__}"
    for name, linear in linears.items():
        if any(matches(name, pattern) for pattern in (*ROUTERS, *config.ignore)):
            found.stay[name] = "left out"
        elif name not in named:
            found.stay[name] = "its weight is stored as a part of another tensor"
        else:
            try:
                scheme = scheme_for(config.scheme, linear.in_features, config.group_size)
            except ValueError as error:
                found.stay[name] = str(error)
            else:
                found.schemes[name] = scheme
                found.tensors[name] = named[name]
    if not found.schemes:
        why = next(iter(found.stay.values()), "there are none")
        raise ConfigError(
            f"{config.checkpoint}: no linear layer of it can be {config.scheme} ({why})"
        )
    groups = {scheme.weights.group_size for scheme in found.schemes.values()}
    if config.group_size and config.group_size not in groups:
        columns = sorted(linears[name].in_features for name in found.schemes)
        raise ConfigError(
            f"--group-size {config.group_size} divides the columns of no linear layer, which are "
            f"{columns[0]:,} to {columns[-1]:,}; name one that does, or leave it out"
        )
    return found


def shared_ranges(folder: Path, found: Linears) -> dict[str, Tensor]:
    """Return the largest magnitude, float32, among each layer and those that engines may fuse with
    it: layers of the same module with as many columns, such as q, k and v, or gate and up.

    Engines give fused layers one scale of scales. Layers whose scheme has none are left out.
    """
    tensors = {
        name: found.tensors[name]
        for name, scheme in found.schemes.items()
        if has_scale_of_scales(scheme.weights)
    }
    owners, largest = dict[str, tuple[str, int]](), dict[tuple[str, int], Tensor]()
    for name, weight in read_weights(folder, tensors):
        owners[name] = owner = name.rpartition(".")[0], weight.shape[1]
        own = weight.abs().amax().float()
        largest[owner] = torch.maximum(largest.get(owner, own), own)
    return {name: largest[owner] for name, owner in owners.items()}


def _multiply(name: str, module: nn.Module) -> Iterator[str]:
    """Yield the name of a module that has matrices of its own, as engines look for it: they may
    have a module for each of the experts that are one tensor here.
    """
    most = max((parameter.ndim for parameter in module.parameters(recurse=False)), default=0)
    if most > 1:
        yield name
    if most > 2:
        yield "re:" + name.replace(".", "[.]") + "[.].*"


def _require_used(patterns: Collection[str], linears: Collection[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in linears):
            raise ConfigError(f"--ignore {pattern!r} names no linear layer of the decoder")


@torch.no_grad()
def calibrate(
    model: PreTrainedModel, windows: Tensor, names: Iterable[str], quantise: Quantise
) -> None:
    """Quantise the named layers in one pass of all windows (w, length), in the order they are used.

    Each layer is quantised when its input arrives, which quantised layers before it have made; the
    pass goes on with its quantised weight. A layer that the text does not reach stays as it is.
    Raises NumericsError at an input that is not finite.
    """
    hooks: dict[str, RemovableHandle] = {}
    seen = moment = torch.empty(0)  # an input, and E[x x'] (n, n), float32, of it

    def before(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal seen, moment
        hooks[name].remove()
        if given[0] is not seen:  # several layers are given the same tensor
            rows = given[0].flatten(0, -2).float()
            seen, moment = given[0], rows.T @ rows / len(rows)
            if not torch.isfinite(moment).all():
                raise NumericsError(f"{name}: its inputs are not finite; use --dtype float32")
        weight = module.get_parameter("weight").data
        weight.copy_(quantise(name, weight, moment, seen.abs().max().float()))

    for name in names:
        hook = partial(before, name)
        hooks[name] = model.get_submodule(name).register_forward_pre_hook(hook)
    base: Any = model.base_model
    base(input_ids=windows.to(model.device), use_cache=False)
