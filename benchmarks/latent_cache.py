"""The latent cache beside the ordinary one: bytes, logits and speed of decoding.

    python -m benchmarks.latent_cache CHECKPOINT... --text FILE --work-dir DIR

The text is read as a prompt, then token by token with both caches in turn. A random Llama whose
keys and values are as wide as its hidden states is cut in DIR and measured, too.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache

from benchmarks.random_llama import save_random_llama
from benchmarks.serving import compressed
from benchmarks.timing import interleave
from workers.model.loading import load_model, load_tokenizer

_WIDTH, _LAYERS, _VOCABULARY = 1024, 4, 1024


@torch.no_grad()
def main() -> None:
    """Print one row for every checkpoint."""
    options = _parse()
    torch.set_num_threads(options.threads)
    table = Table("checkpoint", title=f"{options.prompt} tokens, float32; latent over ordinary")
    for heading in ("bytes a token", "held", "largest logit difference", "tokens a second"):
        table.add_column(heading, justify="right")
    console = Console(width=140)
    for checkpoint in [*options.checkpoints, *_wide(options)]:
        row = [Path(checkpoint).name, *_measure(checkpoint, options)]
        console.print("  ".join(row))
        table.add_row(*row)
    console.print(table)


def _measure(checkpoint: Path, options: argparse.Namespace) -> list[str]:
    model: Any = load_model(checkpoint, "float32", "cpu", trust_remote_code=True)
    tokens = _tokens(checkpoint, options)
    caches: dict[str, Any] = {
        "ordinary": DynamicCache(config=model.config),
        "latent": model.latent_cache(),
    }
    for cache in caches.values():
        model(tokens[:, : options.prompt], past_key_values=cache)
    layers = caches["ordinary"].layers
    ordinary_held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    size, held = caches["latent"].bytes_per_token, caches["latent"].nbytes

    def decode(cache: Any) -> Tensor:
        at = cache.get_seq_length()
        steps = [
            model(tokens[:, each : each + 1], past_key_values=cache).logits[0]
            for each in range(at, at + options.steps)
        ]
        return torch.cat(steps)

    calls = {name: partial(decode, cache) for name, cache in caches.items()}
    timings = interleave(calls, options.rounds)
    mine, theirs = (timings.results[name] for name in ("latent", "ordinary"))
    speeds = [options.steps / timings.seconds(name) for name in ("latent", "ordinary")]
    return [
        f"{size.latent:,} / {size.ordinary:,} = {size.latent / size.ordinary:.2f}",
        f"{held:,} / {ordinary_held:,} = {held / ordinary_held:.2f}",
        f"{float((mine - theirs).abs().max()):.1e} of {float(theirs.abs().max()):.1f}",
        f"{speeds[0]:.1f} / {speeds[1]:.1f} = {timings.ratio('ordinary', 'latent'):.2f}",
    ]


def _tokens(checkpoint: Path, options: argparse.Namespace) -> Tensor:
    """Return the tokens (1, n) that are read; random ones where there is no tokenizer."""
    count = options.prompt + options.rounds * options.steps
    if not (checkpoint / "tokenizer_config.json").is_file():
        return torch.randint(_VOCABULARY, (1, count), generator=torch.Generator().manual_seed(0))
    text = options.text.read_text(encoding="utf-8")[: 16 * count]
    ids: Any = load_tokenizer(checkpoint, trust_remote_code=False)(text, return_tensors="pt")
    found: Tensor = ids["input_ids"][:, :count]
    return found


def _wide(options: argparse.Namespace) -> list[Path]:
    base = options.work_dir / f"random-{_WIDTH}-wide"
    if not base.is_dir():
        heads = {"num_key_value_heads": _WIDTH // 64, "vocab_size": _VOCABULARY}
        save_random_llama(base, _WIDTH, _LAYERS, **heads)
    return [
        compressed(base, factors, ratio)
        for factors in ("plain", "pivoted")
        for ratio in (0.2, 0.4, 0.6)
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
