"""Pivoted against plain factors of the same W', on a finished run.

    python -m benchmarks.encodings --checkpoint DIR --run-dir DIR.run --evaluation TEXT

Takes the ranks of a pivoted checkpoint and the bases of its run, builds both encodings in float32
(greatest difference of logits), and rounds both to bf16 (perplexity).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from runtime.configuration_lowrank import Matrix
from runtime.modeling_lowrank import LowRankLinear
from schemas.errors import ConfigError
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


def main() -> None:
    """Build both encodings of every low-rank matrix, and compare."""
    options = _parse()
    if not (options.checkpoint / SUCCESS).is_file():
        raise ConfigError(f"{options.checkpoint} is no finished checkpoint")
    done = Compression.model_validate_json((options.checkpoint / "compression.json").read_bytes())
    base = resolve(done.model, None)
    tokenizer = load_tokenizer(base, trust_remote_code=False)
    tokens = shared_tokens(options.evaluation, {"base": tokenizer}, 16 * 1024)
    windows = evaluation_windows(tokens, 1024, 16)
    logits: dict[str, Tensor] = {}
    scores: dict[str, float] = {}
    for encoding in ("plain", "pivoted"):
        model = _encoded(options, done, base, encoding)
        with torch.no_grad():
            logits[encoding] = model(windows[:1]).logits
        for linear in model.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.data = linear.weight.data.bfloat16().float()
        scores[encoding] = perplexity(model, windows).perplexity
    _print(done.ratio, logits, scores)


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
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--evaluation", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
