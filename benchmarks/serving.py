"""Tokens a second of compressed models over those of their base, by ratio, encoding and dtype.

    python -m benchmarks.serving --work-dir DIR

`svdllm bench` serves a base and what was cut from it in turn: SmolLM2, and random Llamas
(2,048 wide of 8 layers, as llama-2048x8, or any other). Speed does not depend on values, so the
factors are random, and all matrices have one ratio: as plain or pivoted factors, or, "pruned", MLPs
by fewer neurons and attention as pivoted factors. Or, "neurons", MLPs lose for attention, too,
which not every --ratio allows.

A report that DIR has is not measured again. --ratio, --factors and so on choose. --only-measured
measures none. --plot FILE.svg draws prompts and eight sequences of every model, pivoted, in the
first --dtype and --form.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.picture import write_picture
from benchmarks.random_llama import save_random_llama
from pipeline.bench import bench
from pipeline.cli.demo_inputs import fetch_model
from pipeline.report.plots import Point, Series, curves
from pipeline.stages.assemble import write_around
from runtime.configuration_lowrank import Matrix, tensor_shapes
from schemas.errors import ConfigError
from schemas.model.grid import neuron_grid
from schemas.model.spec import Factors, MatrixSpec
from schemas.request.bench import BenchConfig
from schemas.result.bench import BenchedModel, BenchReport, over
from schemas.result.output import OutputFile
from workers.checkpoint.names import WEIGHTS
from workers.model.inspection import inspect

SERVED = {"prefill": (1, 512), "decode": (8, 32)}  # batch and tokens of a prompt


Form = Factors | Literal["pruned", "neurons"]


class Setting(NamedTuple):
    """What models that take turns have in common."""

    model: str
    dtype: str
    form: str


class Cell(NamedTuple):
    """A cut model beside its base, by part of `SERVED`."""

    ratio: float
    factors: Form
    pairs: dict[str, tuple[BenchedModel, BenchedModel]]

    @property
    def speeds(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Tokens a second of every round, of the base and of the cut model."""
        (dense, small), (dense_8, small_8) = (
            [model.served[0] for model in self.pairs[part]] for part in SERVED
        )
        return {
            "Prefill of 512 tokens": (dense.prefill, small.prefill),
            "Decode, one sequence": (dense.decode, small.decode),
            "Decode, eight sequences": (dense_8.decode, small_8.decode),
        }


def main() -> None:
    """Measure what is asked for and not there yet; print a row of every cut model."""
    options = _parse()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    table = Table(
        "model", "dtype", "form", "removed", "factors", title="Tokens a second, dense = 1"
    )
    for heading in ("prefill, 1 x 512", "decode, 1", "decode, 8", "weights"):
        table.add_column(heading, justify="right")
    console = Console(width=120)
    drawn: list[Series] = []
    for setting in itertools.starmap(
        Setting, itertools.product(options.model, options.dtype, options.form)
    ):
        cells = list(_cells(setting, options))
        for cell in cells:
            row = [*setting, f"{cell.ratio:g}", cell.factors]
            row += [
                f"{over(small, dense):.2f} of {statistics.median(dense):,.1f}"
                for dense, small in cell.speeds.values()
            ]
            before, after = (model.bytes_on_disk for model in cell.pairs["prefill"])
            table.add_row(*row, f"{after / before:.2f}")
        if cells and setting[1:] == (options.dtype[0], options.form[0]):
            drawn += _lines(setting.model, [cell for cell in cells if cell.factors == "pivoted"])
        console.print(table)
    if options.plot and drawn:
        label = "Tokens a second over the dense model's"
        write_picture(options.plot, curves(drawn, "removed, per cent", "times dense", label))


def _lines(model: str, cells: list[Cell]) -> Iterator[Series]:
    for title in ("Prefill of 512 tokens", "Decode, eight sequences"):
        times = [over(*reversed(cell.speeds[title])) for cell in cells]
        found = [Point(100 * c.ratio, y, f"{y:.2f}") for c, y in zip(cells, times, strict=True)]
        points = [Point(0.0, 1.0, ""), *found]
        yield Series(f"{model}: {title.lower()}", points, [""] * len(points))


def _cells(setting: Setting, options: argparse.Namespace) -> Iterator[Cell]:
    """Yield every cut model of a setting, in the order of the options; all took turns."""
    cuts = list(itertools.product(options.factors, options.ratio))
    reports = {part: _report(setting, cuts, options, part) for part in SERVED}
    if None in reports.values():
        return
    for at, (factors, ratio) in enumerate(cuts, 1):
        pairs = {
            part: (report.models[0], report.models[at])
            for part, report in reports.items()
            if report is not None
        }
        yield Cell(ratio, factors, pairs)


def _report(
    setting: Setting, cuts: list[tuple[Form, float]], options: argparse.Namespace, part: str
) -> BenchReport | None:
    """Return the report of a base and everything cut from it; None if only what there is counts,
    and it is not there.
    """
    asked = (f"{factors}-{ratio:g}" for factors, ratio in cuts)
    settings = (options.rank_multiple, options.new_tokens, options.rounds, options.threads)
    named = "-".join([*asked, *(str(setting) for setting in settings)])
    path: Path = options.work_dir / f"{'-'.join(setting)}-{part}-{named}.json"
    if path.is_file():
        return BenchReport.model_validate_json(path.read_bytes())
    if options.only_measured:
        return None
    base = _base(setting.model, options.work_dir)
    cut = [str(compressed(base, *of, options.rank_multiple)) for of in cuts]
    batch, prompt = SERVED[part]
    config = BenchConfig(
        checkpoint=cut[0],
        baseline=str(base),
        also=tuple(cut[1:]),
        batch=(batch,),
        prompt_tokens=(prompt,),
        new_tokens=(options.new_tokens,),
        rounds=options.rounds,
        dtype=setting.dtype,
        compiled=setting.form == "compiled",
        threads=options.threads,
        trust_remote_code=True,  # written here, by no run, so without a manifest
    )
    report = bench(config)
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def _base(model: str, folder: Path) -> Path:
    if model == "smollm2":
        return fetch_model(folder / "SmolLM2-135M-Instruct")
    wide = folder / model
    hidden, layers = map(int, model.removeprefix("llama-").split("x"))
    return wide if wide.is_dir() else save_random_llama(wide, hidden, layers)


def compressed(base: Path, factors: Form, ratio: float, multiple: int = 1) -> Path:
    """Write random factors in the place of every matrix of a Llama, each at one ratio, or the next
    one above with ranks that are multiples of `multiple`; "neurons" alone make up for all.
    """
    folder = base.parent / f"{base.name}-{factors}-{ratio:g}-{multiple}"
    if (folder / WEIGHTS).is_file():
        return folder
    folder.mkdir(exist_ok=True)
    tensors = load_file(base / WEIGHTS)
    cuts: dict[str, Matrix] = {}
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    matrices = inspect(base).matrices
    if factors == "neurons":
        mlps = tuple(matrix for matrix in matrices if matrix.neurons)
        ratio *= sum(matrix.size for matrix in matrices) / sum(matrix.size for matrix in mlps)
        matrices = mlps
        if ratio >= 1:
            raise ConfigError(f"neurons: MLPs would lose {ratio:.0%}; ask for a lower --ratio")
    for matrix in matrices:
        dense = tensors.pop(f"{matrix.stored}.weight")
        cut = cuts[matrix.name] = _cut(matrix, factors, ratio, multiple)
        found = _random(matrix, cut, generator)
        tensors |= {
            f"{matrix.stored}.{name}": tensor.to(dense) if name != "order" else tensor
            for name, tensor in found.items()
        }
    write_around(folder, base, {}, cuts, [OutputFile(name=WEIGHTS, tensors=())])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def _cut(matrix: MatrixSpec, form: Form, ratio: float, multiple: int) -> Matrix:
    if form == "plain" or form == "pivoted":
        return Matrix(matrix.encoding(form), _rank(matrix, form, ratio, multiple))
    if not matrix.neurons:
        return _cut(matrix, "pivoted", ratio, multiple)
    grid = neuron_grid(multiple, matrix.neuron_count)
    return Matrix(matrix.pruned, int((1 - ratio) * matrix.neuron_count) // grid * grid)


def _rank(matrix: MatrixSpec, factors: Factors, ratio: float, multiple: int) -> int:
    ranks = range(multiple, matrix.small + 1, multiple)
    kept = (1 - ratio) * matrix.size
    return max(rank for rank in ranks if matrix.stored_parameters(factors, rank) <= kept)


def _random(matrix: MatrixSpec, cut: Matrix, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = tensor_shapes(*cut, matrix.out_features, matrix.in_features, bias=False)
    found = {
        name: torch.randn(shape, generator=generator, device=generator.device) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    if "order" in found:
        found["order"] = torch.randperm(*shapes["order"])
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    for name, kind, values in (
        ("model", str, ["smollm2", "llama-2048x8"]),
        ("dtype", str, ["float32", "bfloat16"]),
        ("form", str, ["eager", "compiled"]),
        ("ratio", float, [0.2, 0.4, 0.6, 0.8]),
        ("factors", str, ["plain", "pivoted", "pruned"]),
    ):
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=values)
    parser.add_argument("--rank-multiple", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only-measured", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
