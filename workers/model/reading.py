"""The weights of parts of any model, through transformers' own renaming and conversion.

The names in the files of a checkpoint need not be those of the model in memory: prefixes are
renamed, experts stacked, fused matrices split. transformers knows how, and does it here for one
part at a time. The rest of the model stays on the meta device, and no tensor is read that the part
does not need.
"""

from collections.abc import Callable, Collection, Iterable
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
from transformers.utils.loading_report import LoadStateDictInfo

from schemas.errors import CheckpointError
from workers.process.failures import failure


class Places:
    """Where the tensors of a checkpoint's files go in a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms: Any = get_model_conversion_mapping(model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._there: dict[str, Any] = model.state_dict()

    def of(self, name: str) -> tuple[str, bool]:
        """Return the parameter or buffer that a tensor goes to (of several, the first), and whether
        it is converted on the way.
        """
        rules = self._renamings, self._converters, self._prefix, self._there
        place, pattern = rename_source_key(name, *rules)
        if place not in self._there and name in self._there:
            place, pattern = rename_source_key(name, [], [], self._prefix, self._there)
        return place, pattern is not None

    def may_follow(self, place: str) -> bool:
        """Whether a conversion that fills several parameters may fill this one after the first."""
        splits = [one.target_patterns[1:] for one in self._converters]
        return any(pattern.replace(r"\1", "") in place for targets in splits for pattern in targets)


def unexpected_of(model: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Return those of some tensors without a place in a model that transformers does not ignore."""
    found = LoadStateDictInfo(set(), set(names), set(), [], {}, set())
    model._adjust_missing_and_unexpected_keys(found)
    return found.unexpected_keys


class Weights:
    """Fills parts of a model on the meta device from the tensors of a checkpoint.

    `read` returns a tensor of the files by name, on the device. Parameters get the dtype of the
    model. `path` is the name of the list of layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        path: str,
        read: Callable[[str], Tensor],
        device: torch.device,
    ) -> None:
        self._model: Any = model
        self._path, self._read, self._device = path, read, device
        self._mapping: Any = get_model_conversion_mapping(model)
        self._places = Places(model)

    def fill_layer(
        self, index: int, names: Collection[str], replaced: Collection[str] = ()
    ) -> nn.Module:
        """Return decoder layer `index` with its weights, from the tensors `names`. Those that are
        `replaced` stay on the meta device, unless they are converted.

        Raises CheckpointError if one is amiss.
        """
        prefix = f"{self._path}.{index}."
        places = {name: self._places.of(name) for name in names if name in replaced}
        empty = {name: place for name, (place, converted) in places.items() if not converted}
        left = {name for name in names if name not in empty}
        absent = set(empty.values())
        self._fill(f"layer {index}", left, lambda n: n.startswith(prefix) and n not in absent)
        layer: nn.Module = self._model.get_submodule(prefix[:-1])
        for name, _ in layer.named_modules(prefix=prefix[:-1]):
            self._compute_buffers(name)
        return layer

    def fill_outside(self, names: Collection[str], modules: Collection[str]) -> None:
        """Fill what is not in a layer: parameters from the tensors `names`, and the buffers of
        `modules` that no file holds. Raises CheckpointError if a tensor is amiss.
        """
        self._fill("outside the layers", names, lambda _: False)
        self._model.tie_weights()
        for name in modules:
            self._compute_buffers(name)

    def _fill(self, what: str, names: Collection[str], needed: Callable[[str], bool]) -> None:
        config = LoadStateDictConfig(
            dtype=self._model.dtype,
            dtype_plan=self._model._get_dtype_plan(self._model.dtype),
            weight_mapping=self._mapping,
            device_map={"": str(self._device)},
        )
        waiting = {name: _Waiting(name, self._read) for name in names}
        found, _ = convert_and_load_state_dict_in_model(self._model, waiting, config)
        for text in map(str, found.conversion_errors.values()):
            if failure(RuntimeError(text)) != "other":  # of memory or the device, not the files
                raise RuntimeError(text)
        missing = sorted(filter(needed, found.missing_keys))
        unexpected = sorted(unexpected_of(self._model, found.unexpected_keys))
        wrong = [str(one) for one in (*found.mismatched_keys, *found.conversion_errors.values())]
        if missing or unexpected or wrong:
            raise CheckpointError(
                f"model_type {self._model.config.model_type!r}, {what}: tensors missing {missing}, "
                f"unexpected {unexpected}, wrong {wrong}"
            )

    def _compute_buffers(self, name: str) -> None:
        """Give the buffers of a module that no file holds, of rotary embeddings say, their values.

        Raises CheckpointError if the model gives them none.
        """
        module = self._model.get_submodule(name)
        empty = {leaf: b for leaf, b in module.named_buffers(recurse=False) if b.is_meta}
        for leaf, buffer in empty.items():
            unlikely = _unlikely(buffer.dtype)
            module._buffers[leaf] = torch.full_like(buffer, unlikely, device=self._device)
        model = self._model_of(name)
        for giver in (module, model):  # some models give those of all layers at once
            if empty:
                model._init_weights(giver)
            empty = {leaf: b for leaf, b in empty.items() if _is_empty(module.get_buffer(leaf))}
        for leaf in empty:
            raise CheckpointError(
                f"model_type {self._model.config.model_type!r}: nothing gives buffer "
                f"{name}.{leaf} its values"
            )

    def _model_of(self, name: str) -> Any:
        """Return the innermost model that a module is a part of: a decoder, say."""
        while not isinstance(model := self._model.get_submodule(name), PreTrainedModel):
            name = name.rpartition(".")[0]
        return model


def _unlikely(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else 0 if dtype == torch.bool else -99


def _is_empty(tensor: Tensor) -> bool:
    """Whether a tensor still has the unlikely value everywhere; of booleans nobody knows."""
    still = tensor.isnan() if tensor.is_floating_point() else tensor == _unlikely(tensor.dtype)
    return tensor.dtype != torch.bool and tensor.numel() > 0 and bool(still.all())


class _Waiting:
    """A tensor that is read when transformers takes it, as it takes a slice of a file."""

    def __init__(self, name: str, read: Callable[[str], Tensor]) -> None:
        self._name, self._read = name, read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read(self._name)[index]
