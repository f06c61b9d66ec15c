"""Quantised weights of one linear layer: scales, rounding to nearest, and GPTQ."""

from typing import Any, NamedTuple

import torch
from compressed_tensors.compressors import BaseCompressor  # type: ignore[import-untyped]
from compressed_tensors.quantization import (  # type: ignore[import-untyped]
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
)
from compressed_tensors.quantization.lifecycle.forward import (  # type: ignore[import-untyped]
    fake_quantize,
)
from compressed_tensors.quantization.utils import (  # type: ignore[import-untyped]
    calculate_qparams,
    generate_gparam,
)
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from schemas.errors import NumericsError

_COLUMNS = 128  # that GPTQ works on before it corrects those to the right of them
_SHRUNK = 16  # ranges that are tried for each group, down to _LEAST of the largest magnitude
_LEAST = 0.5
_SEARCHED = 4  # bits up to which another range than the full one can be better


class Scales(NamedTuple):
    """Scales (m, groups) and zero points of a weight, and one scale (1,) of the scales, if any."""

    scale: Tensor
    zero_point: Tensor
    of_scales: Tensor | None


class Rounded(NamedTuple):
    """What is stored of a weight, by the tails of the names, and the weight (m, n), float32, that
    it stands for; `error` is relative, as in `QuantisedLinear`.
    """

    stored: dict[str, Tensor]
    weight: Tensor
    error: float


def quantised(
    weight: Tensor,
    scheme: QuantizationScheme,
    dtype: torch.dtype,
    moment: Tensor | None = None,
    damping: float = 0.01,
    largest: Tensor | None = None,
) -> Rounded:
    """Quantise a weight (m, n) as a scheme says; scales are stored in `dtype`.

    With the second moment (n, n) of the layer's inputs by GPTQ, else to the nearest. A scale of
    scales, if the scheme has one, is that of weights up to `largest`, by default the weight's own.
    Raises NumericsError if the moment is not positive definite when it is damped.
    """
    wide = weight.float()
    args: QuantizationArgs = scheme.weights
    scales = find_scales(wide, args, dtype, largest)
    if moment is None:
        found = fake_quantize(wide, scales.scale.float(), scales.zero_point, args, scales.of_scales)
    else:
        found = gptq(wide, scales, args, moment, damping)
    named: dict[str, Any] = {
        "weight": found,
        "weight_scale": scales.scale,
        "weight_zero_point": scales.zero_point,
    }
    if scales.of_scales is not None:
        named["weight_global_scale"] = scales.of_scales
    compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
    stored = {name: t.contiguous() for name, t in compressor.compress(named, scheme).items()}
    return Rounded(stored, found, _error(wide, found, moment))


def find_scales(
    weight: Tensor, args: QuantizationArgs, dtype: torch.dtype, largest: Tensor | None = None
) -> Scales:
    """Return the scales of a weight (m, n), float32: those of the full range of each group or, for
    integers of few bits, of a shrunken range if the squared error is less.
    """
    size = args.group_size if args.strategy != QuantizationStrategy.CHANNEL else None
    groups = weight.reshape(len(weight), -1, size or weight.shape[1])
    low, high = groups.amin(-1), groups.amax(-1)
    of_scales = None
    if has_scale_of_scales(args):
        largest = weight.abs().amax() if largest is None else largest
        of_scales = generate_gparam(-largest, largest)
    few = args.type == QuantizationType.INT and args.num_bits <= _SEARCHED
    best = torch.full_like(low, torch.inf)
    scale, zero = _scale_and_zero(low, high, args, of_scales, dtype)
    for step in range(_SHRUNK if few else 0):
        part = 1 - (1 - _LEAST) * step / _SHRUNK
        tried, _ = _scale_and_zero(low * part, high * part, args, of_scales, dtype)
        near = fake_quantize(weight, tried.float(), zero, args, of_scales)
        loss = (near.view_as(groups) - groups).square().sum(-1)
        scale = torch.where(loss < best, tried, scale)
        best = torch.minimum(best, loss)
    return Scales(scale, zero, of_scales)


def _scale_and_zero(
    low: Tensor, high: Tensor, args: QuantizationArgs, of_scales: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the scales of groups, in the dtype that they are stored in, and their zero points. A
    group that is almost zero has the least scale that is not.
    """
    scale, zero = calculate_qparams(low, high, args, of_scales)
    if args.scale_dtype:
        return scale, zero
    stored = torch.finfo(dtype)
    return scale.to(dtype).clamp_min(stored.smallest_normal * stored.eps), zero


def has_scale_of_scales(args: QuantizationArgs) -> bool:
    """Whether the scales of groups have a scale themselves, as in NVFP4."""
    return bool(args.strategy == QuantizationStrategy.TENSOR_GROUP)


def input_range(scheme: QuantizationScheme, largest: Tensor) -> dict[str, Tensor]:
    """Return what is stored of a layer's inputs: for NVFP4 the scale (1,) of their scales, from
    their largest magnitude. Other schemes store nothing.
    """
    inputs = scheme.input_activations
    if inputs is None or not has_scale_of_scales(inputs):
        return {}
    return {"input_global_scale": generate_gparam(-largest, largest)}


def gptq(
    weight: Tensor, scales: Scales, args: QuantizationArgs, moment: Tensor, damping: float
) -> Tensor:
    """Return the quantised values (m, n), float32, by GPTQ (arXiv 2210.17323, Algorithm 1).

    Columns are rounded one by one, those with the largest inputs first, and each corrects those
    that follow. `moment` (n, n) is that of the inputs. Groups and scales stay those of the weight
    as it is stored. Raises NumericsError if the damped moment is not positive definite.
    """
    columns = weight.shape[1]
    group = columns // scales.scale.shape[1]
    one = args.model_copy(update={"strategy": QuantizationStrategy.CHANNEL, "group_size": None})
    order = moment.diagonal().argsort(descending=True)
    upper = _inverse_root(moment[order][:, order], damping)
    rest = weight.T[order].contiguous()  # columns lie in rows, which is faster
    found = torch.empty_like(rest)
    scale = scales.scale.float().T[order // group, :, None].contiguous()
    zero = scales.zero_point.T[order // group, :, None].contiguous()
    for start in range(0, columns, _COLUMNS):
        stop = min(start + _COLUMNS, columns)
        errors = torch.empty_like(rest[start:stop])
        for at in range(start, stop):
            near = fake_quantize(rest[at, :, None], scale[at], zero[at], one, scales.of_scales)
            found[order[at]] = near[:, 0]
            errors[at - start] = (rest[at] - near[:, 0]) / upper[at, at]
            rest[at:stop] -= torch.outer(upper[at, at:stop], errors[at - start])
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    return found.T


def _inverse_root(moment: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a damped moment."""
    damped = moment.clone()
    damped.diagonal().add_(damping * moment.diagonal().mean().clamp_min(1e-12))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except LinAlgError as error:
        raise NumericsError(
            f"the moment of a layer's inputs is not positive definite ({error}); raise --damping"
        ) from error
    return upper


def _error(weight: Tensor, near: Tensor, moment: Tensor | None) -> float:
    rest = weight - near
    if moment is None:
        lost, whole = rest.square().sum(), weight.square().sum()
    else:
        lost, whole = ((one @ moment * one).sum() for one in (rest, weight))
    return float((lost / whole).clamp_min(0).sqrt()) if whole > 0 else 0.0  # it gives nothing
