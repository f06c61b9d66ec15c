"""Pivoted against plain factors of the same W', on a finished run, and the speed of a layer.

    python -m benchmarks.encodings --checkpoint DIR --run-dir DIR.run --evaluation TEXT [TEXT ...]
    python -m benchmarks.encodings --speed

The first takes the ranks of a pivoted checkpoint and the bases of its run, and stores the same W'
as plain factors and by its rows, its columns, and whichever its sharding asks for: in float32
(greatest difference of logits) and in bf16 (perplexity, error of W', greatest |T|). The second
times single layers with 20 % removed, of one thread, against the dense one.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import interleave
from runtime.configuration_lowrank import Matrix
from runtime.modeling_lowrank import LowRankLinear
from schemas.model.spec import Encoding, Factors, MatrixSpec, factor_parameters
from schemas.result.manifest import Compression
from workers.checkpoint.fetching import resolve
from workers.checkpoint.published import read_compression, read_manifest
from workers.evaluation.perplexity import perplexity
from workers.model.inspection import inspect
from workers.model.loading import load_model, load_tokenizer
from workers.storage.keys import basis_key
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store
from workers.text.windows import evaluation_windows, shared_tokens
from workers.truncation.basis import Basis
from workers.truncation.encoding import Stored, pivoted_factors, plain_factors

FORMS = ("plain", "by rows", "by columns", "by sharding")
ENCODINGS: tuple[Encoding, ...] = ("plain", "pivoted", "pivoted-columns")
_REMOVED = 0.2
_DTYPES = (torch.float32, torch.bfloat16)
_LAYERS = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (6144, 2048), (2048, 6144))
_TOKENS = (1, 8, 512)
_TOKENS_A_ROUND = 16
_WINDOWS, _LENGTH = 16, 1024


def main() -> None:
    """Store every low-rank matrix in all encodings, and compare."""
    options = _parse()
    if options.speed:
        speed(options.rounds)
        return
    done = read_compression(options.checkpoint)
    base = resolve(done.model, None)
    tokenizer = load_tokenizer(base, trust_remote_code=False)
    windows = []
    for text in options.evaluation:
        tokens = shared_tokens(text, {"base": tokenizer}, _WINDOWS * _LENGTH)
        windows.append(evaluation_windows(tokens, _LENGTH, _WINDOWS))
    figures: dict[str, Figures] = {}
    for form in FORMS:
        model, _ = _stored(options, done, base, form, torch.float32)
        with torch.no_grad():
            logits = model(windows[0][:1]).logits
        model, stored = _stored(options, done, base, form, torch.bfloat16)
        scores = [perplexity(model, text).perplexity for text in windows]
        figures[form] = Figures(logits, scores, stored)
    _print(done.ratio, [Path(text).name for text in options.evaluation], figures)


class Figures(NamedTuple):
    """Float32 logits, perplexities in bf16, and how every matrix was stored."""

    logits: Tensor
    scores: list[float]
    stored: list[Stored]


@torch.inference_mode()
def speed(rounds: int) -> None:
    """Print the speed of all encodings, forward, over that of a dense layer."""
    torch.set_num_threads(1)
    table = Table("dtype", "m x n, tokens", title=f"One layer, {_REMOVED:.0%} removed, dense = 1")
    for encoding in ENCODINGS:
        table.add_column(encoding, justify="right")
    for dtype, (m, n), tokens in itertools.product(_DTYPES, _LAYERS, _TOKENS):
        x = torch.randn(1, tokens, n, dtype=dtype)
        layers: dict[str, nn.Module] = {"dense": nn.Linear(n, m, bias=False)}
        for encoding in ENCODINGS:
            factors: Factors = "plain" if encoding == "plain" else "pivoted"
            kept = (1 - _REMOVED) * m * n
            ranks = range(1, min(m, n) + 1)
            rank = max(k for k in ranks if factor_parameters(factors, k, m, n) <= kept)
            layers[encoding] = LowRankLinear(Matrix(encoding, rank), m, n, bias=False)
            if encoding != "plain":
                order = layers[encoding].get_buffer("order")
                order.copy_(torch.randperm(len(order)))
        calls = {name: partial(_repeat, layer.to(dtype), x) for name, layer in layers.items()}
        interleave(calls, 1)
        timings = interleave(calls, rounds)
        shown = [f"{timings.ratio('dense', encoding):.2f}" for encoding in ENCODINGS]
        table.add_row(str(dtype).removeprefix("torch."), f"{m} x {n}, {tokens}", *shown)
    Console(width=100).print(table)


def _repeat(layer: nn.Module, x: Tensor) -> None:
    for _ in range(max(1, _TOKENS_A_ROUND // x.shape[1])):
        layer(x)


def _stored(
    options: argparse.Namespace, done: Compression, base: Path, form: str, dtype: torch.dtype
) -> tuple[Any, list[Stored]]:
    """The base in float32, with factors, rounded to `dtype`, for every low-rank matrix."""
    store = Store(options.run_dir)
    ids = read_manifest(options.checkpoint).identities
    model: Any = load_model(base, "float32", "cpu", trust_remote_code=False)
    specs = {matrix.name: matrix for matrix in inspect(base).matrices}
    found = []
    for result in done.matrices:
        if result.cut_at is None:
            continue
        spec = specs[result.name]
        loss, facts = read_spectrum(store, ids, spec)
        tensors = store.load(basis_key(ids, result.name)).tensors
        left, right = tensors["left"].double(), tensors["right"].double()
        basis = Basis(loss.eigenvalues, left, right, facts.through)
        old = model.model.get_submodule(result.name)
        a, b = basis.factors(old.weight.data, result.cut_at)
        found.append(_store(a, b, form, spec, dtype))
        model.model.set_submodule(result.name, _linear(old, found[-1]))
    return model.eval(), found


def _store(a: Tensor, b: Tensor, form: str, spec: MatrixSpec, dtype: torch.dtype) -> Stored:
    if form == "plain":
        return plain_factors(a, b, dtype)
    columns = spec.column_parallel if form == "by sharding" else form == "by columns"
    return pivoted_factors(a, b, dtype, columns)


def _linear(old: nn.Linear, stored: Stored) -> LowRankLinear:
    new = LowRankLinear(stored.matrix, old.out_features, old.in_features, old.bias is not None)
    new.load_state_dict(stored.tensors)
    return new


def _print(ratio: float, texts: list[str], figures: dict[str, Figures]) -> None:
    plain = figures["plain"].logits
    table = Table(
        "stored", title=f"The same W' in several encodings, {ratio:.0%} removed, rounded to bf16"
    )
    for name in (*texts, "error of W'", "greatest |T|", "float32 logits"):
        table.add_column(name, justify="right")
    for form, (logits, scores, stored) in figures.items():
        error = max(one.rounding for one in stored)
        largest = max(one.interpolation_max or 0.0 for one in stored)
        difference = float((logits - plain).abs().max() / plain.abs().max())
        shown = (f"{score:.3f}" for score in scores)
        table.add_row(form, *shown, f"{error:.1e}", f"{largest:.1f}", f"{difference:.1e}")
    Console(width=100).print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--evaluation", nargs="+")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not options.speed and None in (options.checkpoint, options.run_dir, options.evaluation):
        parser.error("name --checkpoint, --run-dir and --evaluation, or --speed")
    return options


if __name__ == "__main__":
    main()
