"""The weights of parts of any model, through transformers' own renaming and conversion.

The names in the files of a checkpoint need not be those of the model in memory: prefixes are
renamed, experts stacked, fused matrices split. transformers knows how, and does it here for one
part at a time. The rest of the model stays on the meta device, and no tensor is read that the part
does not need.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from schemas.errors import CheckpointError
from workers.model.carving import layer_list


class Weights:
    """Fills a causal language model on the meta device from the tensors of a checkpoint.

    `names` are all tensors of its files, `read` returns one of them. Parameters get the dtype of
    the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        names: Collection[str],
        read: Callable[[str], Tensor],
        device: torch.device,
    ) -> None:
        self._model: Any = model
        self._read, self._device = read, device
        self._path, self._layers = layer_list(model)
        self._mapping: Any = get_model_conversion_mapping(model)
        self._places = dict(zip(names, self._in_memory(names), strict=True))

    def fill_layer(self, index: int) -> nn.Module:
        """Return decoder layer `index` with its weights. Raises CheckpointError if one is amiss."""
        prefix = f"{self._path}.{index}."
        self._fill(prefix, [n for n, place in self._places.items() if place.startswith(prefix)])
        self._compute_buffers(self._layers[index])
        return self._layers[index]

    def fill_outside(self) -> None:
        """Fill all that is not in a layer: embeddings, final norm, head.

        Raises CheckpointError if a tensor is amiss, or if the model has no use for one.
        """
        layers = f"{self._path}."
        self._fill("", [n for n, place in self._places.items() if not place.startswith(layers)])
        self._model.tie_weights()
        left = [name for name, tensor in self._outside() if tensor.is_meta]
        if left:
            raise self._amiss(f"tensors missing {left}")
        for name, module in self._model.named_modules():
            if not f"{name}.".startswith(layers):
                self._compute_buffers(module, recurse=False)

    def _in_memory(self, names: Collection[str]) -> Iterator[str]:
        """Yield where each tensor of the files goes; of several parameters, to the first."""
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        prefix, there = self._model.base_model_prefix, self._model.state_dict()
        for name in names:
            place, _ = rename_source_key(name, renamings, converters, prefix, there)
            if place not in there and name in there:
                place, _ = rename_source_key(name, [], [], prefix, there)
            yield place

    def _fill(self, prefix: str, names: Collection[str]) -> None:
        config = LoadStateDictConfig(
            dtype=self._model.dtype,
            weight_mapping=self._mapping,
            device_map={"": str(self._device)},
        )
        waiting = {name: _Waiting(name, self._read) for name in names}
        found, _ = convert_and_load_state_dict_in_model(self._model, waiting, config)
        missing = sorted(name for name in found.missing_keys if prefix and name.startswith(prefix))
        idle = self._model._keys_to_ignore_on_load_unexpected or ()
        unexpected = [n for n in found.unexpected_keys if not any(re.search(p, n) for p in idle)]
        wrong = [str(one) for one in (*found.mismatched_keys, *found.conversion_errors.values())]
        if missing or unexpected or wrong:
            raise self._amiss(f"tensors missing {missing}, unexpected {unexpected}, wrong {wrong}")

    def _outside(self) -> Iterator[tuple[str, Tensor]]:
        layers = f"{self._path}."
        for name, tensor in self._model.named_parameters():
            if not name.startswith(layers):
                yield name, tensor

    def _compute_buffers(self, part: nn.Module, recurse: bool = True) -> None:
        """Give the buffers that no file holds (of rotary embeddings) the values of their model."""
        for module in part.modules() if recurse else (part,):
            empty = {n: b for n, b in module.named_buffers(recurse=False) if b.is_meta}
            for name, buffer in empty.items():
                module._buffers[name] = torch.empty_like(buffer, device=self._device)
            if empty:
                self._model._init_weights(module)

    def _amiss(self, why: str) -> CheckpointError:
        return CheckpointError(f"model_type {self._model.config.model_type!r}: {why}")


class _Waiting:
    """A tensor that is read when transformers takes it, as it takes a slice of a file."""

    def __init__(self, name: str, read: Callable[[str], Tensor]) -> None:
        self._name, self._read = name, read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read(self._name)[index]
