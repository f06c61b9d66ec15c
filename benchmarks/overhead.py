"""What observing costs: both calibration streams against the bare passes of plain transformers.

    python -m benchmarks.overhead

Bare forward: the base model without a graph. Bare forward and backward: the base model in one go
with its graph, and the gradient of the same loss brought back to the embedded tokens, not
to weights. Ours: the layer shards with all taps of the default method, to the finished sums.

By flops, with P parameters in the matrices of a layer and M numbers in its moments, a token takes
2 P forward and 2 P backward, and q^2 for one triangle of a moment (q, q). So the forward stream
takes (P + M/2) / P of a bare forward. The backward stream computes every layer again, but for the
matrix that ends it (D parameters), whose output nobody reads: (3 P - D + M/2) / 2 P of a bare
forward and backward. Attention and the head are left out; both sides have them.
"""

import argparse
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.random_llama import save_random_llama
from benchmarks.timing import interleave
from pipeline.cli.demo_inputs import fetch_model, write_texts
from schemas.model.spec import ModelSpec
from schemas.run.moments import Pass, taps
from workers.model.inspection import inspect
from workers.model.layers import Decoder
from workers.model.loading import load_model, load_tokenizer
from workers.model.shard import Shard, Step
from workers.text.windows import calibration_windows, read_text

SEED = 0


class Subject(NamedTuple):
    """A checkpoint, and windows (count, tokens) for each stream."""

    folder: Path
    spec: ModelSpec
    windows: dict[Pass, Tensor]


def main() -> None:
    """Both streams of both models."""
    options = _parse()
    torch.set_num_threads(options.threads)
    table = Table("model", "pass", title=f"Calibration in float32, {options.threads} threads")
    for heading in ("tokens", "bare, s", "ours, s", "ours / bare", "by flops"):
        table.add_column(heading, justify="right")
    for name, subject in (("SmolLM2-135M", _smollm2(options)), ("random Llama", _wide(options))):
        width = f"{name}, {subject.spec.layers} layers of {subject.spec.hidden_size}"
        for direction, windows in subject.windows.items():
            cells = _measure(subject, direction, options.rounds)
            table.add_row(width, direction, "{} x {}".format(*windows.shape), *cells)
    Console(width=110).print(table)


def _measure(subject: Subject, direction: Pass, rounds: int) -> list[str]:
    found = taps(subject.spec.matrices, "fisher", gradients=True)
    decoder = Decoder(subject.folder, subject.spec, torch.float32, torch.device("cpu"))
    shard = Shard(decoder, range(subject.spec.layers), taps=found)
    windows = subject.windows[direction]
    contenders = {
        "bare": _bare(subject, windows, direction, shard),
        "ours": _ours(windows, direction, shard),
    }
    interleave(contenders, 1)  # warm up, and leave a segment to be closed
    timings = interleave(contenders, rounds)
    size = subject.spec.targeted
    moments = sum(tap.elements for tap in found if tap.direction == direction)
    unread = sum(m.size for m in subject.spec.matrices if m.path in subject.spec.ends[m.layer])
    forward = (size + moments / 2) / size
    backward = (3 * size - unread + moments / 2) / (2 * size)
    return [
        f"{timings.seconds('bare'):.2f}",
        f"{timings.seconds('ours'):.2f}",
        f"{timings.ratio('ours', 'bare'):.2f}",
        f"{forward if direction == 'forward' else backward:.2f}",
    ]


def _bare(subject: Subject, windows: Tensor, direction: Pass, shard: Shard) -> Callable[[], None]:
    """Plain transformers on every window; `shard` gives the gradient of the loss."""
    model: Any = load_model(subject.folder, "float32", "cpu", trust_remote_code=False)
    base = model.model.requires_grad_(False)
    if direction == "backward":
        base.norm = nn.Identity()  # a part of the loss

    def forward() -> None:
        with torch.no_grad():
            for window in windows:
                base(input_ids=window[None], use_cache=False)

    def backward() -> None:
        for index, window in enumerate(windows):
            hidden = base.embed_tokens(window[None]).requires_grad_()
            output = base(inputs_embeds=hidden, use_cache=False).last_hidden_state
            gradient = shard.loss_gradient(output.detach(), Step(index, 0), SEED)
            torch.autograd.grad(output, hidden, gradient)

    return forward if direction == "forward" else backward


def _ours(windows: Tensor, direction: Pass, shard: Shard) -> Callable[[], None]:
    """One stream; each call is a segment of its own, and closes the one before."""
    segments = count()

    def forward() -> None:
        segment = next(segments)
        for index, window in enumerate(windows):
            shard.forward(window[None], Step(index, segment), "moments")

    def backward() -> None:
        segment = next(segments)
        for index, window in enumerate(windows):
            step = Step(index, segment)
            output = shard.forward(window[None], step, "gradient")
            shard.backward(shard.loss_gradient(output, step, SEED), step)

    return forward if direction == "forward" else backward


def _smollm2(options: argparse.Namespace) -> Subject:
    folder = fetch_model(options.work_dir / "SmolLM2-135M-Instruct")
    calibration, _ = write_texts(options.work_dir / "text")
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    tokens, _ = read_text(str(calibration), "calibration", tokenizer)
    return Subject(
        folder,
        inspect(folder),
        {
            direction: calibration_windows(tokens, length, options.windows, SEED)
            for direction, length in _lengths(options)
        },
    )


def _wide(options: argparse.Namespace) -> Subject:
    """Matrices of a large model, with few layers and a small head, on random tokens."""
    hidden = options.hidden
    folder = save_random_llama(
        options.work_dir / f"llama-{hidden}-{options.layers}",
        hidden,
        options.layers,
        intermediate_size=4 * hidden,
        num_key_value_heads=hidden // 256,
    )
    spec, generator = inspect(folder), torch.Generator().manual_seed(SEED)
    return Subject(
        folder,
        spec,
        {
            direction: torch.randint(
                spec.vocab_size, (options.windows, length), generator=generator
            )
            for direction, length in _lengths(options)
        },
    )


def _lengths(options: argparse.Namespace) -> list[tuple[Pass, int]]:
    return [("forward", options.forward_length), ("backward", options.backward_length)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--hidden", type=int, default=2048, help="of the random Llama")
    parser.add_argument("--layers", type=int, default=2, help="of the random Llama")
    parser.add_argument("--windows", type=int, default=4, help="in a segment")
    parser.add_argument("--forward-length", type=int, default=2048)
    parser.add_argument("--backward-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
