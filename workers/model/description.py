"""What a model consists of, told by its code alone: built on the meta device, without values."""

import functools
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from runtime.configuration_lowrank import plan_pattern
from schemas.errors import CheckpointError
from schemas.location import Url
from schemas.model.spec import DecoderSpec, MatrixSpec, Role, TensorSpec
from workers.checkpoint.family import Config, dtype_of
from workers.checkpoint.headers import QUANTISED_ADVICE
from workers.checkpoint.names import CONFIG
from workers.model.anatomy import Anatomy, describe, is_below, is_plain
from workers.model.linear import Linear
from workers.model.reading import Places, unexpected_of
from workers.model.skeleton import skeleton


@functools.lru_cache(maxsize=32)  # most of the time that a description takes
def _anatomy(content: str) -> Anatomy:
    model = skeleton(json.loads(content), CONFIG, torch.bfloat16)
    _forget_lengths(model)
    return describe(model)


def _forget_lengths(model: PreTrainedModel) -> None:
    """Let rotary embeddings turn as the default ones do: others may ask how long a text is, which
    is a value. Shapes stay the same.
    """
    module: Any
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), str):
            module.rope_type = "default"
        elif isinstance(kind, dict):  # by the type of a layer
            module.rope_type = dict.fromkeys(kind, "default")
    config: Any = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:  # which phimoe asks
        parameters["rope_type"] = "default"


class Description:
    """A model without values, described."""

    def __init__(self, config: Config, where: str) -> None:
        self._config, self._where = config, where
        dtype_of(config, where)
        model: Any = skeleton(config, where, torch.bfloat16)
        self.model = model
        try:
            self._anatomy = _anatomy(json.dumps(config, sort_keys=True))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        self.state: dict[str, torch.Tensor] = self.model.state_dict()
        names = {module: name for name, module in self.model.named_modules()}
        self._embedding = names[self.model.get_input_embeddings()]
        self._head = names[self.model.get_output_embeddings()]
        table, head = f"{self._embedding}.weight", f"{self._head}.weight"
        shared = dict(self.model.named_parameters(remove_duplicate=False))
        self.tied = {head} if shared.get(head) is shared[table] else set()
        self._vocabulary = (
            len(shared[head])
            if head in shared
            else self.model.get_output_embeddings().out_features  # of a low-rank one
        )
        self._places = Places(self.model)
        self._parts: dict[str, tuple[str, bool]] = {}  # of the tensors in the files

    def placed(self, tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return tensors of the files with their roles in the model."""
        found = []
        for tensor in tensors:
            place, _ = self._parts[tensor.name] = self._places.of(tensor.name)
            role, layer = self._role(place)
            found.append(tensor.model_copy(update={"role": role, "layer": layer}))
        return tuple(found)

    def _role(self, place: str) -> tuple[Role, int | None]:
        owner = place.rpartition(".")[0]
        if place.startswith(f"{self._anatomy.path}.") and place in self.state:
            return "layer", int(place.removeprefix(f"{self._anatomy.path}.").partition(".")[0])
        if place in self.tied:
            return "tied", None
        if is_below(owner, self._head):  # a low-rank one consists of others
            return "head", None
        if owner == self._embedding:
            return "embedding", None
        return "outside" if owner in self._anatomy.outside else "passing", None

    def compare(self, folder: Path, tensors: tuple[TensorSpec, ...]) -> None:
        """Raises CheckpointError at the first tensor that is not what config.json implies."""
        layers = len(self._anatomy.linears)
        described = f"config.json describes ({self.model.config.model_type}, {layers} layers)"
        placeless = (t.name for t in tensors if self._parts[t.name][0] not in self.state)
        unexpected = unexpected_of(self.model, placeless)
        filled: set[str] = set()
        for tensor in tensors:
            place, converted = self._parts[tensor.name]
            if place not in self.state:
                if tensor.name not in unexpected:
                    continue
                raise CheckpointError(
                    f"{folder / tensor.file}: tensor {tensor.name} is no part of the model that "
                    f"{described}; remove it, or correct config.json"
                )
            filled.add(place)
            expected = self.state[place]
            if not converted and tensor.shape != tuple(expected.shape):
                raise CheckpointError(
                    f"{folder / tensor.file}: {tensor.name} has shape {list(tensor.shape)}, "
                    f"config.json implies {list(expected.shape)}; fetch config.json and weights of "
                    "one model"
                )
            if expected.is_floating_point() and not tensor.dtype.startswith(("F", "BF")):
                raise CheckpointError(
                    f"{folder / tensor.file}: {tensor.name} is {tensor.dtype}; {QUANTISED_ADVICE}"
                )
        filled |= self.tied
        optional = self.model._keys_to_ignore_on_load_missing or ()
        for place in self.state:
            needless = any(re.search(pattern, place) for pattern in optional)
            if place not in filled and not needless and not self._places.may_follow(place):
                remedy = "fetch the whole checkpoint again"
                if place == f"{self._embedding}.weight" and (own := self._stored_tied()):
                    remedy = f"rename {own}, to which config.json ties it, in the files"
                raise CheckpointError(
                    f"{folder}: no tensor {place} in the files, though it belongs to the model "
                    f"that {described}; {remedy}"
                )

    def _stored_tied(self) -> str | None:
        """Return the name of a tensor of the files for which the embedding is to stand."""
        names = (name for name, (place, _) in self._parts.items() if place in self.tied)
        return next(names, None)

    def spec(self, tensors: tuple[TensorSpec, ...], weights: Url | None) -> DecoderSpec:
        """Return the description of a checkpoint with these tensors."""
        config: Any = self.model.config.get_text_config(decoder=True)
        return DecoderSpec(
            model_type=str(self._config["model_type"]),
            layers=len(self._anatomy.linears),
            hidden_size=config.hidden_size,
            vocab_size=self._vocabulary,
            context=self._context(getattr(config, "max_position_embeddings", None)),
            tied=bool(self.tied),
            path=self._anatomy.path,
            tuples=self._anatomy.tuples,
            ends=tuple(map(_ends, self._anatomy.linears)),
            modules=tuple(sorted(n for n in self._anatomy.outside if not is_below(n, self._head))),
            tensors=tensors,
            weights=weights,
        )

    def _context(self, value: object) -> int | None:
        if value is None or (type(value) is int and value > 1):
            return value
        raise CheckpointError(
            f"{self._where}: max_position_embeddings is {value!r}, not a whole number above 1; "
            "fetch the file again"
        )

    def matrices(self) -> tuple[MatrixSpec, ...]:
        """Return every linear of every layer whose weight the files hold as it is; neurons are
        those of which they hold all matrices so.
        """
        stored = {place: name for name, (place, converted) in self._parts.items() if not converted}
        base = f"{self.model.base_model_prefix}."
        found = []
        for layer, linears in enumerate(self._anatomy.linears):
            prefix = f"{self._anatomy.path}.{layer}"
            partial = {
                one.neurons for one in linears if f"{prefix}.{one.path}.weight" not in stored
            }
            for linear in linears:
                path = f"{prefix}.{linear.path}"
                if (name := stored.get(f"{path}.weight")) is None:
                    continue
                column_parallel = is_column_parallel(self.model, path)
                for part, rows in enumerate(linear.split or (linear.out_features,)):
                    end = f".{part}" if linear.split else ""
                    found.append(
                        MatrixSpec(
                            name=path.removeprefix(base) + end,
                            layer=layer,
                            path=linear.path + end,
                            reads=linear.reads,
                            neurons="" if linear.neurons in partial else linear.neurons,
                            stored=name.removesuffix(".weight"),
                            out_features=rows,
                            in_features=linear.in_features,
                            bias=linear.bias,
                            transposed=linear.transposed,
                            column_parallel=column_parallel,
                            split=linear.split,
                            part=part,
                        )
                    )
        return tuple(found)

    def head(self) -> MatrixSpec | None:
        """Return the output embedding as a matrix that counts to the last layer; None if it is no
        plain linear layer, if the files do not hold it as it is, or if the model reads its weight
        at every token, which a cut one would have to multiply for that.
        """
        head: Any = self.model.get_output_embeddings()
        place = f"{self._head}.weight"
        stored = (name for name, part in self._parts.items() if part == (place, False))
        name = next(stored, place if place in self.tied else None)
        is_read = f"self.{self._head}.weight" in inspect.getsource(type(self.model).forward)
        if name is None or is_read or not (isinstance(head, nn.Linear) and is_plain(head)):
            return None
        path = self._head.removeprefix(f"{self.model.base_model_prefix}.")
        return MatrixSpec(
            name=path,
            layer=len(self._anatomy.linears) - 1,
            path=path,
            reads=path,
            stored=name.removesuffix(".weight"),
            out_features=head.out_features,
            in_features=head.in_features,
            bias=head.bias is not None,
            column_parallel=is_column_parallel(self.model, self._head),
        )


def is_column_parallel(model: PreTrainedModel, path: str) -> bool:
    """Whether tensor parallelism cuts the outputs of a linear layer, by the plan of its family."""
    plan = model.tp_plan or {}
    return "colwise" in plan.get(plan_pattern(plan, path), "")


def _ends(linears: tuple[Linear, ...]) -> tuple[str, ...]:
    return tuple(linear.path for linear in linears if linear.ends)
