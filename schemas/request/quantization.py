"""The configuration of `svdllm quantize`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Request
from schemas.location import LocalPath
from schemas.request.groups import Device, DType
from schemas.request.settings import Flag, Words
from schemas.request.texts import Texts

Scheme = Literal["W2A16", "W3A16", "W4A16", "W8A16", "W8A8", "FP8", "NVFP4A16", "NVFP4"]
GROUPED = ("W2A16", "W3A16", "W4A16", "W8A16")
"""The schemes whose weights share a scale in groups of a size that may be chosen."""
FEW_BITS = ("W2A16", "W3A16", "W4A16", "NVFP4A16", "NVFP4")
"""The schemes below 8 bits, for which GPTQ pays."""
ROTATED = (*FEW_BITS, "W8A8", "FP8")
"""The schemes for which low-rank factors are rotated before they are rounded: those of few bits,
and those that round the latents between two factors, too.
"""

_OF_CALIBRATION = {"calibration_samples", "sequence_length", "damping", "dtype", "device"}


class QuantizationConfig(Request):
    """Fewer bits for the linear layers of any checkpoint, a compressed one or a base."""

    checkpoint: Annotated[str, Flag(positional=True)] = Field(
        min_length=1, description="A local checkpoint folder, a hub id or a URL"
    )
    scheme: Scheme = Field(
        description="Bits of weights and activations, as compressed-tensors calls them"
    )
    output: LocalPath = Field(description="Folder of the quantised checkpoint")
    calibration: Annotated[Texts, Flag(unset="none: round to nearest")] = Field(
        (), description="Texts for GPTQ, as for compress; NVFP4 needs one"
    )
    calibration_samples: int = Field(64, ge=1, description="Windows of that text")
    sequence_length: int = Field(1024, ge=2, description="Tokens in each window")
    group_size: Annotated[int | None, Flag(unset="128, 64 or 32, the largest that divides")] = (
        Field(None, ge=2, description="Numbers of a row that share a scale; else the whole row")
    )
    ignore: Words = Field((), description="Patterns of linear layers that stay as they are")
    damping: float = Field(
        0.01, gt=0, description="Share of the mean of the moment's diagonal that GPTQ adds to it"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Choice of windows and of rotations")
    dtype: DType = Field("float32", description="Compute type of the calibration")
    device: Device = Field("auto", description="Where to compute; auto: cuda if there is one")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.scheme == "NVFP4" and not self.calibration:
            raise ValueError(
                "scheme NVFP4 needs the range of each layer's inputs: name a text by "
                "--calibration, or leave activations as they are with NVFP4A16"
            )
        if not self.calibration and (idle := sorted(_OF_CALIBRATION & self.model_fields_set)):
            raise ValueError(f"{', '.join(idle)}: for the calibration only; add --calibration")
        if self.group_size is not None and self.scheme not in GROUPED:
            raise ValueError(
                f"group_size: {self.scheme} has groups of its own; leave it out, or choose one of "
                f"{', '.join(GROUPED)}"
            )
        return self
