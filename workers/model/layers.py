"""The parts of a checkpoint that a shard computes, with their weights."""

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.errors import CheckpointError
from schemas.model.spec import DecoderSpec
from workers.checkpoint.config_file import read_config
from workers.checkpoint.family import unquantised
from workers.checkpoint.names import CONFIG
from workers.checkpoint.tensors import TensorReader, is_finite
from workers.model.carving import Carved
from workers.model.reading import Places, Weights
from workers.model.skeleton import skeleton

Finish = Callable[[int, nn.Module], None]
"""Does something to the layer of an index."""


class Decoder:
    """Reads parts of one checkpoint, to one device, in one compute dtype.

    `reader` may give its tensors other values than the files have.
    """

    def __init__(
        self,
        folder: Path,
        spec: DecoderSpec,
        dtype: torch.dtype,
        device: torch.device,
        reader: TensorReader | None = None,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self.dtype = dtype
        self._device = device
        self._reader = reader or TensorReader(folder, spec)

    def part(
        self,
        layers: range,
        finish: Finish = lambda _index, _layer: None,
        replaced: Collection[str] = (),
    ) -> Carved:
        """Return a model with these layers, and what is outside the layers as far as they need it.

        All parameters are frozen; `finish` may change each layer before the next one is read, and
        has to replace those that the tensors `replaced` of the files would fill: they are not read,
        unless they are converted on the way. Raises CheckpointError if a tensor of the files is
        amiss.
        """
        spec = self._spec
        model = self._skeleton()
        weights = Weights(model, spec.path, self.read, self._device)
        held = spec.held(layers)
        try:
            weights.fill_outside([t.name for t in held if t.layer is None], spec.modules)
            model.requires_grad_(False)
            for index in layers:
                names = [t.name for t in held if t.layer == index]
                layer = weights.fill_layer(index, names, replaced)
                finish(index, layer.requires_grad_(False))
        except CheckpointError as error:
            raise CheckpointError(f"{self._folder}: {error}") from error
        return Carved(model, spec, self._device)

    def norms(self) -> dict[str, str]:
        """Return the names of the weights of all norms in the model, by their names in the files:
        weights that are vectors, and that the files hold as they are.
        """
        places, found = Places(self._skeleton()), dict[str, str]()
        for tensor in self._spec.tensors:
            read = tensor.role in ("layer", "outside")
            if read and len(tensor.shape) == 1 and tensor.name.endswith(".weight"):
                place, converted = places.of(tensor.name)
                found |= {} if converted else {tensor.name: place}
        return found

    def _skeleton(self) -> PreTrainedModel:
        where = str(self._folder / CONFIG)
        config = unquantised(read_config(self._folder), where, dequantize=True)
        return skeleton(config, where, self.dtype)

    def read(self, name: str) -> Tensor:
        """Return a tensor on the device, in its stored dtype. Raises CheckpointError if a value is
        not finite, or would not be in the compute dtype.
        """
        tensor = self._reader.read(name).to(self._device)
        if not tensor.is_floating_point():
            return tensor
        where = f"{self._reader.file(name)}: {name}"
        if not is_finite(tensor):
            raise CheckpointError(
                f"{where} holds NaN or infinite values; nothing can be computed with them: fetch "
                "the file again, or an earlier state of the model"
            )
        if self.dtype == torch.float16 and not is_finite(tensor.to(self.dtype)):
            raise CheckpointError(
                f"{where} holds values beyond the range of float16; use --dtype bfloat16 or float32"
            )
        return tensor
