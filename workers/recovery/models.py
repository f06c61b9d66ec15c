"""Student and teacher: a truncated model and its base, both cut at their layers and sharded.

Every layer of both is sharded over all workers by `fully_shard` (FSDP2: Zhao et al., arXiv
2304.11277), and gathered only while it is computed. What is outside the layers is frozen and whole
on every worker.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    share_comm_ctx,
)

from runtime.configuration_lowrank import BIASES, Matrix
from runtime.modeling_lowrank import replace_linears
from schemas.model.spec import MatrixSpec, ModelSpec
from schemas.result.output import MatrixResult
from workers.model.carving import Carved
from workers.model.layers import Decoder
from workers.model.unread import weight_of
from workers.recovery.updates import FACTORS, add_updates

Factors = Callable[[str], dict[str, Tensor]]
"""From the name of a matrix to the tensors that store it."""


class Student(NamedTuple):
    """A truncated model, and what is trained of it, by its name in it; `path` is the name of the
    list of layers. `norms` are the names of norms' weights that are trained, by those in the files.
    """

    model: Carved
    trained: dict[str, nn.Parameter]
    path: str
    norms: dict[str, str]

    def of_layer(self, index: int) -> list[nn.Parameter]:
        """Return what is trained of a layer."""
        prefix = f"{self.path}.{index}."
        return [p for name, p in self.trained.items() if name.startswith(prefix)]


def build_teacher(decoder: Decoder, spec: ModelSpec, mesh: DeviceMesh) -> Carved:
    """Return the base, frozen, in the dtype of `decoder`."""
    return decoder.part(range(spec.layers), lambda _, layer: _shard(layer, mesh))


def build_student(
    decoder: Decoder,
    spec: ModelSpec,
    rows: Mapping[str, MatrixResult],
    factors: Factors,
    mesh: DeviceMesh,
    offload: bool = False,
    rank_of_updates: int | None = None,
    norms: bool = False,
) -> Student:
    """Return the truncated model, `rows` saying how each matrix is stored.

    The factors, or updates of them of some rank, are trainable and in float32, and so are the
    weights of `norms` in the layers and after them; the rest is frozen.
    All of it computes in the dtype of `decoder`; with `offload`, the parameters of layers are in
    host memory while they do not.
    """
    trained: dict[str, nn.Parameter] = {}
    weights = decoder.norms() if norms else {}
    stored_norms = {place: file for file, place in weights.items()}
    cut = {m.name for m in spec.matrices if rows[m.name].encoding != "dense"}
    linears = [parts for parts in spec.linears.values() if any(m.name in cut for m in parts)]
    replaced = {
        f"{parts[0].stored}.weight" for parts in linears if all(m.name in cut for m in parts)
    }

    def as_stored(place: str) -> Tensor | None:
        return decoder.read(stored_norms[place]) if place in stored_norms else None

    def truncate(index: int, layer: nn.Module) -> None:
        mine = [parts for parts in linears if parts[0].layer == index]
        stored = {
            m.path: Matrix(rows[m.name].encoding, rows[m.name].rank)
            for parts in mine
            for m in parts
            if m.name in cut
        }
        old: list[Any] = [layer.get_submodule(_place(parts[0])) for parts in mine]
        split = {_place(parts[0]): list(parts[0].split) for parts in mine if parts[0].split}
        replace_linears(layer, stored, split)
        for parts, linear in zip(mine, old, strict=True):
            for m in parts:
                if m.name in cut:
                    tensors = factors(m.name)
                else:
                    tensors = {"dense.weight": weight_of(linear)[m.rows].contiguous()}
                bias = None if linear.bias is None else linear.bias[m.rows]
                _fill(layer.get_submodule(m.path), tensors, bias)
        layer.requires_grad_(False)
        there = dict(layer.named_parameters())
        cut_factors = [f"{path}.{factor}" for path in stored for factor in FACTORS]
        cut_factors = [factor for factor in cut_factors if f"{factor}.weight" in there]
        names = [f"{factor}.weight" for factor in cut_factors]
        if cut_factors and rank_of_updates:
            for factor in cut_factors:
                layer.get_submodule(factor).to(decoder.dtype)
            names = add_updates(layer, cut_factors, rank_of_updates, seed=index)
        prefix = f"{spec.path}.{index}."
        names += [n.removeprefix(prefix) for n in weights.values() if n.startswith(prefix)]
        for name in names:
            _train(layer, name, as_stored(f"{prefix}{name}"))
        _shard(layer, mesh, decoder.dtype, offload)
        trained.update(
            (f"{prefix}{name}", parameter)
            for name, parameter in layer.named_parameters()
            if parameter.requires_grad
        )

    model = decoder.part(range(spec.layers), truncate, replaced)
    layers: list[Any] = [*model.layers]
    share_comm_ctx(layers)  # else each keeps its whole gradient until that of the first is there
    outside = [name for name in weights.values() if not name.startswith(f"{spec.path}.")]
    for name in model.in_tail(outside) if outside else []:
        owner, leaf = model.owner(name), name.rpartition(".")[2]
        _train(owner, leaf, as_stored(name))
        _shard(owner, mesh, decoder.dtype, offload)
        trained[name] = owner.get_parameter(leaf)
    named = {file: name for file, name in weights.items() if name in trained}
    return Student(model, trained, spec.path, named)


def _place(matrix: MatrixSpec) -> str:
    """Return the path, in its layer, of the linear layer that a matrix is, or is a part of."""
    return matrix.path.rpartition(".")[0] if matrix.split else matrix.path


def _shard(
    layer: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None, offload: bool = False
) -> None:
    """Shard a layer, which then computes in `dtype`, if it is named; but for what is frozen in
    another one, which transformers keeps in float32: it stays as it is, whole and on the device. So
    do inputs, as some kinds have rotary embeddings in float32.
    """
    frozen = [p for p in layer.parameters() if p.is_floating_point() and not p.requires_grad]
    fully_shard(
        layer,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        offload_policy=CPUOffloadPolicy(torch.cuda.is_available()) if offload else OffloadPolicy(),
        reshard_after_forward=True,  # the default would keep whole a layer that stands alone
        ignored_params={p for p in frozen if dtype not in (None, p.dtype)},
    )


def _fill(module: nn.Module, tensors: dict[str, Tensor], bias: Tensor | None) -> None:
    """Give a low-rank layer the tensors of its item, and the bias of the linear that it was, or in
    its dtype that of the item if that has its own.
    """
    state = dict(tensors)
    if bias is not None:
        for name in module.state_dict().keys() & {*BIASES}:
            state[name] = state.get(name, bias).to(bias.dtype)
    module.load_state_dict(state, assign=True)


def _train(layer: nn.Module, name: str, value: Tensor | None) -> None:
    """Make a parameter trainable, in float32; of another `value` if it has been rounded."""
    owner, _, leaf = name.rpartition(".")
    module = layer.get_submodule(owner)
    value = module.get_parameter(leaf).detach() if value is None else value
    module.register_parameter(leaf, nn.Parameter(value.float()))
