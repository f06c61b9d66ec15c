"""Pivoted against plain factors of the same W', on a finished run, and the speed of a layer.

    python -m benchmarks.encodings --checkpoint DIR --run-dir DIR.run --evaluation TEXT
    python -m benchmarks.encodings --speed

The first takes the ranks of a pivoted checkpoint and the bases of its run, builds both encodings in
float32 (greatest difference of logits), and rounds both to bf16 (perplexity). The second times
single layers with 20 % removed, of one thread, against the dense one.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import interleave
from runtime.configuration_lowrank import Matrix
from runtime.modeling_lowrank import LowRankLinear
from schemas.errors import ConfigError
from schemas.model.spec import Factors, factor_parameters
from schemas.result.manifest import Compression
from workers.checkpoint.fetching import resolve
from workers.checkpoint.names import SUCCESS
from workers.checkpoint.published import read_manifest
from workers.evaluation.perplexity import perplexity
from workers.model.inspection import inspect
from workers.model.loading import load_model, load_tokenizer
from workers.storage.keys import basis_key
from workers.storage.spectra import read_spectrum
from workers.storage.store import Store
from workers.text.windows import evaluation_windows, shared_tokens
from workers.truncation.basis import Basis
from workers.truncation.pivoting import pivot

FACTORS: tuple[Factors, ...] = ("plain", "pivoted")
_REMOVED = 0.2
_DTYPES = (torch.float32, torch.bfloat16)
_LAYERS = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (6144, 2048), (2048, 6144))
_TOKENS = (1, 8, 512)
_TOKENS_A_ROUND = 16


def main() -> None:
    """Build both encodings of every low-rank matrix, and compare."""
    options = _parse()
    if options.speed:
        speed(options.rounds)
        return
    if not (options.checkpoint / SUCCESS).is_file():
        raise ConfigError(f"{options.checkpoint} is no finished checkpoint")
    done = Compression.model_validate_json((options.checkpoint / "compression.json").read_bytes())
    base = resolve(done.model, None)
    tokenizer = load_tokenizer(base, trust_remote_code=False)
    tokens = shared_tokens(options.evaluation, {"base": tokenizer}, 16 * 1024)
    windows = evaluation_windows(tokens, 1024, 16)
    logits: dict[str, Tensor] = {}
    scores: dict[str, float] = {}
    for encoding in FACTORS:
        model = _encoded(options, done, base, encoding)
        with torch.no_grad():
            logits[encoding] = model(windows[:1]).logits
        for linear in model.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.data = linear.weight.data.bfloat16().float()
        scores[encoding] = perplexity(model, windows).perplexity
    _print(done.ratio, logits, scores)


@torch.inference_mode()
def speed(rounds: int) -> None:
    """Print the speed of both encodings, forward, over that of a dense layer."""
    torch.set_num_threads(1)
    table = Table("dtype", "m x n, tokens", title=f"One layer, {_REMOVED:.0%} removed, dense = 1")
    for encoding in FACTORS:
        table.add_column(encoding, justify="right")
    for dtype, (m, n), tokens in itertools.product(_DTYPES, _LAYERS, _TOKENS):
        x = torch.randn(1, tokens, n, dtype=dtype)
        layers: dict[str, nn.Module] = {"dense": nn.Linear(n, m, bias=False)}
        for factors in FACTORS:
            kept = (1 - _REMOVED) * m * n
            ranks = range(1, min(m, n) + 1)
            rank = max(k for k in ranks if factor_parameters(factors, k, m, n) <= kept)
            layers[factors] = LowRankLinear(Matrix(factors, rank), m, n, bias=False)
            if factors == "pivoted":
                layers[factors].get_buffer("order").copy_(torch.randperm(m))
        calls = {name: partial(_repeat, layer.to(dtype), x) for name, layer in layers.items()}
        interleave(calls, 1)
        timings = interleave(calls, rounds)
        shown = [f"{timings.ratio('dense', factors):.2f}" for factors in FACTORS]
        table.add_row(str(dtype).removeprefix("torch."), f"{m} x {n}, {tokens}", *shown)
    Console(width=100).print(table)


def _repeat(layer: nn.Module, x: Tensor) -> None:
    for _ in range(max(1, _TOKENS_A_ROUND // x.shape[1])):
        layer(x)


def _encoded(options: argparse.Namespace, done: Compression, base: Path, encoding: str) -> Any:
    """The base in float32 with every low-rank matrix replaced by its factors."""
    store = Store(options.run_dir)
    identity = read_manifest(options.checkpoint).identities.bases
    model: Any = load_model(base, "float32", "cpu", trust_remote_code=False)
    specs = {matrix.name: matrix for matrix in inspect(base).matrices}
    for result in done.matrices:
        if result.rank is None:
            continue
        loss, facts = read_spectrum(store, identity, specs[result.name])
        stored = store.load(basis_key(identity, result.name)).tensors
        left, right = stored["left"].double(), stored["right"].double()
        basis = Basis(loss.eigenvalues, left, right, facts.through)
        old = model.model.get_submodule(result.name)
        a, b = basis.factors(old.weight.data, result.rank)
        model.model.set_submodule(result.name, _linear(old, a, b, encoding))
    return model.eval()


def _linear(old: nn.Linear, a: Tensor, b: Tensor, encoding: str) -> LowRankLinear:
    matrix = Matrix(encoding, a.shape[1])
    new = LowRankLinear(matrix, old.out_features, old.in_features, old.bias is not None)
    if encoding == "plain":
        new.up.weight.data, new.down.weight.data = a.float(), b.float()
        return new
    pivoted = pivot(a, b)
    new.up.weight.data = pivoted.interpolation.float()
    new.down.weight.data = pivoted.rows.float()
    new.order.data = pivoted.order
    return new


def _print(ratio: float, logits: dict[str, Tensor], scores: dict[str, float]) -> None:
    difference = (logits["plain"] - logits["pivoted"]).abs().max() / logits["plain"].abs().max()
    table = Table("", title=f"The same W' in two encodings, ratio {ratio:g}")
    table.add_column("value", justify="right")
    table.add_row("float32 logits, greatest relative difference", f"{float(difference):.1e}")
    for encoding, score in scores.items():
        table.add_row(f"perplexity in bf16, {encoding}", f"{score:.3f}")
    table.add_row("difference", f"{scores['pivoted'] / scores['plain'] - 1:+.2%}")
    Console(width=100).print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--evaluation")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if not options.speed and None in (options.checkpoint, options.run_dir, options.evaluation):
        parser.error("name --checkpoint, --run-dir and --evaluation, or --speed")
    return options


if __name__ == "__main__":
    main()
