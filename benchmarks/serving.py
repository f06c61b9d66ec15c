"""Tokens a second of compressed models over those of their base, by ratio, encoding and dtype.

    python -m benchmarks.serving --work-dir DIR

`svdllm bench` serves base and compressed model in turn, for SmolLM2 and a random Llama 2,048 wide.
Speed does not depend on values, so the factors are random, and all matrices have one ratio. A cell
that DIR has a report of is not measured again; --ratio, --factors and so on choose cells, and with
--page FILE a page shows their curves. --only-measured measures none.
"""

import argparse
import itertools
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.random_llama import save_random_llama
from pipeline.bench import bench
from pipeline.cli.demo_inputs import fetch_model
from pipeline.report import plots
from pipeline.report.figures import Table as PageTable
from pipeline.report.page import render_page
from pipeline.report.speed import speed_figure
from pipeline.stages.assemble import write_around
from runtime.configuration_lowrank import tensor_shapes
from schemas.model.spec import Factors, MatrixSpec, factor_parameters
from schemas.request.bench import BenchConfig
from schemas.result.bench import BenchReport, over
from schemas.result.output import MatrixResult
from workers.checkpoint.names import WEIGHTS
from workers.model.inspection import inspect

SERVED = {"prefill": (1, 512), "decode": (8, 32)}  # batch and tokens of a prompt


Lines = dict[tuple[str, str], list[plots.Point]]  # by figure, then by what is not the ratio


class Cell(NamedTuple):
    """One row of the table."""

    model: str
    dtype: str
    form: str
    ratio: float
    factors: Factors

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


def main() -> None:
    """Measure what is asked for and not there yet; print a row after each, then all."""
    options = _parse()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    axes = (options.model, options.dtype, options.form, options.ratio, options.factors)
    table = Table(
        "model", "dtype", "form", "removed", "factors", title="Tokens a second, dense = 1"
    )
    for heading in ("prefill, 1 x 512", "decode, 1", "decode, 8", "weights"):
        table.add_column(heading, justify="right")
    console = Console(width=120)
    lines: Lines = defaultdict(list)
    for cell in itertools.starmap(Cell, itertools.product(*axes)):
        if options.only_measured and not all(_file(cell, options, p).is_file() for p in SERVED):
            continue
        alone, batched = (_report(cell, options, part) for part in SERVED)
        row = [*map(str, cell), *_figures(alone, batched)]
        console.print("  ".join(row))
        table.add_row(*row)
        for title, factor in _factors(alone, batched).items():
            named = f"{cell.model}, {cell.dtype}, {cell.form}, {cell.factors}"
            point = plots.Point(100 * cell.ratio, factor, cell.name)
            lines[title, named].append(point)
    console.print(table)
    if options.page and lines:
        options.page.write_text(_page(lines), encoding="utf-8")


def _factors(alone: BenchReport, batched: BenchReport) -> dict[str, float]:
    """Return how many times faster than dense each of the figures is."""
    (dense, small), (dense_8, small_8) = (
        [model.served[0] for model in report.models] for report in (alone, batched)
    )
    return {
        "Prefill of 512 tokens": over(small.prefill, dense.prefill),
        "Decode, one sequence": over(small.decode, dense.decode),
        "Decode, eight sequences": over(small_8.decode, dense_8.decode),
    }


def _page(lines: Lines) -> str:
    figures = []
    for number, title in enumerate(dict.fromkeys(title for title, _ in lines)):
        series = [
            plots.Series(name, points, [f"{point.y:.2f}" for point in points])
            for (each, name), points in lines.items()
            if each == title
        ]
        figures.append((title, speed_figure(f"speed-{number}", title, series)))
    rows = [
        (point.tip, title, f"{point.y:.2f}")
        for (title, _), points in lines.items()
        for point in points
    ]
    return render_page(
        "bench.html.j2",
        headline="Tokens a second over the dense model's",
        setting="Random factors of one ratio in all matrices; base and cut model in turn",
        figures=figures,
        table=PageTable("Every cell that was measured", ("cell", "figure", "times dense"), rows),
    )


def _figures(alone: BenchReport, batched: BenchReport) -> list[str]:
    (dense, small), (dense_8, small_8) = (
        [model.served[0] for model in report.models] for report in (alone, batched)
    )
    before, after = (model.bytes_on_disk for model in alone.models)
    return [
        _over(small.prefill, dense.prefill),
        _over(small.decode, dense.decode),
        _over(small_8.decode, dense_8.decode),
        f"{after / before:.2f}",
    ]


def _over(figures: tuple[float, ...], dense: tuple[float, ...]) -> str:
    return f"{over(figures, dense):.2f} of {statistics.median(dense):,.1f}"


def _report(cell: Cell, options: argparse.Namespace, part: str) -> BenchReport:
    path = _file(cell, options, part)
    if path.is_file():
        return BenchReport.model_validate_json(path.read_bytes())
    base = _base(cell.model, options.work_dir)
    batch, prompt = SERVED[part]
    config = BenchConfig(
        checkpoint=str(compressed(base, cell.factors, cell.ratio)),
        baseline=str(base),
        batch=(batch,),
        prompt_tokens=(prompt,),
        new_tokens=(options.new_tokens,),
        rounds=options.rounds,
        dtype=cell.dtype,
        compiled=cell.form == "compiled",
        threads=options.threads,
        trust_remote_code=True,  # written here, by no run, so without a manifest
    )
    report = bench(config)
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def _file(cell: Cell, options: argparse.Namespace, part: str) -> Path:
    path: Path = options.work_dir / f"{cell.name}-{part}.json"
    return path


def _base(model: str, folder: Path) -> Path:
    if model == "smollm2":
        return fetch_model(folder / "SmolLM2-135M-Instruct")
    wide = folder / "random-llama"
    return wide if wide.is_dir() else save_random_llama(wide, 2048, 8)


def compressed(base: Path, factors: Factors, ratio: float) -> Path:
    """Write random factors in the place of every matrix of a Llama, each at one ratio."""
    folder = base.parent / f"{base.name}-{factors}-{ratio:g}"
    if (folder / WEIGHTS).is_file():
        return folder
    folder.mkdir(exist_ok=True)
    tensors = load_file(base / WEIGHTS)
    results: dict[str, MatrixResult] = {}
    generator = torch.Generator().manual_seed(0)
    for matrix in inspect(base).matrices:
        dense = tensors.pop(f"{matrix.stored}.weight")
        rank = _rank(matrix, factors, ratio)
        results[matrix.name] = _result(matrix, factors, rank)
        found = _random(matrix, factors, rank, generator)
        tensors |= {
            f"{matrix.stored}.{name}": tensor.to(dense.dtype) if name != "order" else tensor
            for name, tensor in found.items()
        }
    write_around(folder, base, {}, results, [])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def _rank(matrix: MatrixSpec, factors: Factors, ratio: float) -> int:
    shape = matrix.out_features, matrix.in_features
    ranks = range(1, matrix.small + 1)
    kept = (1 - ratio) * matrix.size
    return max(rank for rank in ranks if factor_parameters(factors, rank, *shape) <= kept)


def _random(
    matrix: MatrixSpec, factors: Factors, rank: int, generator: torch.Generator
) -> dict[str, Tensor]:
    shapes = tensor_shapes(factors, rank, matrix.out_features, matrix.in_features, bias=False)
    found = {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    if "order" in found:
        found["order"] = torch.randperm(matrix.out_features, generator=generator)
    return found


def _result(matrix: MatrixSpec, factors: Factors, rank: int) -> MatrixResult:
    shape: Any = matrix.out_features, matrix.in_features
    parameters = factor_parameters(factors, rank, *shape)
    return MatrixResult(
        name=matrix.name,
        shape=shape,
        encoding=factors,
        rank=rank,
        parameters=parameters,
        predicted_loss=0.0,
        achieved_loss=0.0,
        energy=None,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    for name, kind, values in (
        ("model", str, ["smollm2", "random-llama"]),
        ("dtype", str, ["float32", "bfloat16"]),
        ("form", str, ["eager", "compiled"]),
        ("ratio", float, [0.2, 0.4, 0.6, 0.8]),
        ("factors", str, ["plain", "pivoted"]),
    ):
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=values)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only-measured", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
