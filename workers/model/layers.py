"""The pieces of a decoder as separate modules: embedding, one layer, and the head.

A layer is a transformers base model with that layer only: its masks, rotary embedding and sliding
window are transformers' own, and its numbers cannot depend on which layers are computed beside it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from runtime import modeling_lowrank
from runtime.configuration_lowrank import ARCHITECTURES as LOW_RANK_CLASSES
from schemas.errors import CheckpointError
from schemas.model.spec import DecoderSpec
from workers.checkpoint.names import CONFIG
from workers.checkpoint.tensors import TensorReader, is_finite

_NO_CODE = {"trust_remote_code": False, "local_files_only": True}


class Head(NamedTuple):
    """The final norm, and the output embedding (vocabulary, hidden)."""

    norm: nn.Module
    embedding: Tensor


class Decoder:
    """Builds the pieces of one checkpoint, on one device, in one compute dtype.

    A compressed checkpoint is built by the classes in `runtime/`; its own code is not run.
    """

    def __init__(
        self, folder: Path, spec: DecoderSpec, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._dtype = dtype
        self._device = device
        self._reader = TensorReader(folder, spec)
        self._low_rank: Any = _low_rank_class(spec) if spec.low_rank else None

    def embedding(self) -> Tensor:
        """Return the token embeddings (vocabulary, hidden), in the compute dtype."""
        return self._read(f"{self._spec.architecture.embedding}weight")

    def end(self, layer: nn.Module) -> nn.Module | None:
        """Return the matrix whose product ends a `layer`, if there is one."""
        path = self._spec.architecture.end
        return layer.get_submodule(f"layers.0.{path}") if path else None

    def layer(self, index: int) -> nn.Module:
        """Return a base model of decoder layer `index` only, without embedding and norm, frozen."""
        model = self.skeleton(index)
        prefix = self._spec.architecture.layer.format(index)
        self._fill(model.layers[0], prefix, f"layer {index}")
        module: nn.Module = model
        return module

    def skeleton(self, index: int) -> Any:
        """Return the same without its weights."""
        model = self._skeleton(_one_layer(self._config(), index))
        model.embed_tokens = None
        model.norm = nn.Identity()
        return model

    def head(self) -> Head:
        """Return the modules that turn the hidden states of the last layer into logits."""
        architecture = self._spec.architecture
        norm: nn.Module = self._skeleton(_one_layer(self._config(), 0)).norm
        self._fill(norm, architecture.norm, "final norm")
        name = architecture.embedding if self._spec.tied else architecture.head
        return Head(norm, self._read(f"{name}weight"))

    def _config(self) -> PretrainedConfig:
        source: Any = self._low_rank.config_class if self._low_rank else AutoConfig
        config: PretrainedConfig = source.from_pretrained(self._folder, **_NO_CODE)
        config.use_cache = False
        return config

    def _skeleton(self, config: PretrainedConfig) -> Any:
        """Build a base model of empty tensors, except its rotary embedding, which is computed."""
        auto: Any = AutoModel
        build = self._low_rank._from_config if self._low_rank else auto.from_config
        with torch.device("meta"):
            model = build(config, dtype=self._dtype)
        with torch.device(self._device):
            model.rotary_emb = type(model.rotary_emb)(config=config)
        return model.eval()

    def _fill(self, module: nn.Module, prefix: str, what: str) -> None:
        """Load the tensors of a module; their names in the files begin with `prefix`."""
        on_device = {
            name: self._placed(f"{prefix}{name}", tensor)
            for name, tensor in self._reader.below(prefix).items()
        }
        try:
            result = module.load_state_dict(on_device, strict=False, assign=True)
        except RuntimeError as error:  # a shape differs from config.json
            raise CheckpointError(f"{self._folder}, {what}: {error}") from error
        if result.missing_keys or result.unexpected_keys:
            raise CheckpointError(
                f"{self._folder}, {what}: tensors missing {result.missing_keys}, "
                f"unexpected {result.unexpected_keys}"
            )
        module.requires_grad_(False)

    def _read(self, name: str) -> Tensor:
        return self._placed(name, self._reader.read(name))

    def _placed(self, name: str, stored: Tensor) -> Tensor:
        """Put a tensor on the device in the compute dtype; integers (a row order) keep their dtype.

        Raises CheckpointError if a value is not finite.
        """
        if not stored.is_floating_point():
            return stored.to(self._device)
        tensor = stored.to(device=self._device, dtype=self._dtype)
        if not is_finite(tensor):
            where, dtype = f"{self._reader.file(name)}: {name}", str(self._dtype)[6:]
            if is_finite(stored):
                raise CheckpointError(
                    f"{where} holds values beyond the range of {dtype}; use --dtype bfloat16 or "
                    "float32"
                )
            raise CheckpointError(
                f"{where} holds NaN or infinite values; nothing can be computed with them: fetch "
                "the file again, or an earlier state of the model"
            )
        return tensor


def require_buildable(folder: Path, spec: DecoderSpec) -> None:
    """Raises CheckpointError if transformers cannot compute a layer that config.json describes.

    This builds layers without weights and computes only shapes: no weight file is read.
    """
    meta = torch.device("meta")
    try:
        pieces = Decoder(folder, spec, torch.float32, meta)
        hidden = torch.empty(1, 2, spec.hidden_size, device=meta)
        mask = torch.empty(1, 1, 2, 2, device=meta)  # to make a mask would need values
        for index in {0, spec.layers - 1}:
            pieces.skeleton(index)(inputs_embeds=hidden, attention_mask=mask, use_cache=False)
    except Exception as error:  # transformers may raise anything on a value it does not expect
        raise CheckpointError(
            f"{folder / CONFIG}: transformers cannot compute a layer of it "
            f"({type(error).__name__}: {error}); correct the file, or fetch it again"
        ) from error


def _low_rank_class(spec: DecoderSpec) -> Any:
    """Return the base model class of a compressed checkpoint."""
    return getattr(modeling_lowrank, f"{LOW_RANK_CLASSES[spec.model_type]}Model")


def _one_layer(config: PretrainedConfig, index: int) -> PretrainedConfig:
    """Return the configuration of a model whose only layer is layer `index` of `config`."""
    if (types := getattr(config, "layer_types", None)) is not None:
        config.layer_types = [types[index]]
    if (low_rank := getattr(config, "low_rank", None)) is not None:
        here = f"layers.{index}."
        mine = {
            f"layers.0.{name.removeprefix(here)}": matrix
            for name, matrix in low_rank["matrices"].items()
            if name.startswith(here)
        }
        config.low_rank = low_rank | {"matrices": mine}
    config.num_hidden_layers = 1
    return config
