"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from schemas.model.spec import Factors
from schemas.request.config import Device, DType, OnFailure
from schemas.request.methods import Allocation, Method, Truncation

Model = Annotated[str | None, typer.Option(help="A checkpoint folder, a hub id or a URL.")]
Ratio = Annotated[
    str | None,
    typer.Option(help="Fraction of the targeted parameters REMOVED; several: 0.2,0.4."),
]
Output = Annotated[str | None, typer.Option(help="Folder or URL of the compressed checkpoint.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
RunDir = Annotated[
    str | None,
    typer.Option(help="Folder or URL of the run.", show_default="OUTPUT.run"),
]
MethodFlag = Annotated[
    Method | None, typer.Option(help="Preset of the next three.", show_default="two-sided")
]
TruncationFlag = Annotated[Truncation | None, typer.Option(help="How a matrix is cut at a rank.")]
AllocationFlag = Annotated[Allocation | None, typer.Option(help="How ranks are shared out.")]
FactorsFlag = Annotated[Factors | None, typer.Option(help="How a cut matrix is stored.")]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="A .txt, .jsonl or .parquet file, a known data set or a hub id.",
        show_default="wikitext2",
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="Windows for the forward moments.", show_default="256")
]
Length = Annotated[int | None, typer.Option(help="Tokens in each of them.", show_default="2048")]
GradientSamples = Annotated[
    int | None,
    typer.Option(help="Windows for the gradient moments.", show_default="16 tokens a dimension"),
]
GradientLength = Annotated[int | None, typer.Option(help="Tokens in each.", show_default="512")]
EvaluateFlag = Annotated[
    str | None,
    typer.Option(help="Text to compare base and result on, as --calibration, or none."),
]
Seed = Annotated[int | None, typer.Option(help="Windows and sampled labels.", show_default="0")]
Workers = Annotated[
    int | None,
    typer.Option(help="Layer-shard workers.", show_default="every GPU, or CPU cores to 8"),
]
DeviceFlag = Annotated[Device | None, typer.Option(help="Where to compute.", show_default="auto")]
StorageRead = Annotated[
    str | None,
    typer.Option(help="Assumed for all nodes together, a second.", show_default="6GB"),
]
StorageWrite = Annotated[str | None, typer.Option(help="The same.", show_default="3GB")]
DTypeFlag = Annotated[DType | None, typer.Option(help="Compute type.", show_default="auto")]
OnFailureFlag = Annotated[
    OnFailure | None, typer.Option(help="When a matrix cannot be cut.", show_default="fail")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML of the same settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting: a.b=value. May be repeated.")
]
