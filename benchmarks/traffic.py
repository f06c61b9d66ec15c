"""Bytes that Ray moves through the driver's process, for narrow and wide models of equal depth.

    python -m benchmarks.traffic

Every argument that the driver sends and every result that it gets passes through the serialisation
context of its process; both directions are counted there, by their size as serialised. A reference
to the result of another call is passed on unread, so what only has its reference in the driver does
not count. (Ray itself sends results below 100 KB by way of the driver, whatever is done with them;
hidden states of real models are larger.) What is avoided stands beside it: the hidden states that
go between shards, computed. Files that the driver reads itself (text, and the checkpoint for its
SHA-256) are counted by the kernel.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private.serialization import SerializationContext
from rich.console import Console
from rich.table import Table

from benchmarks.random_llama import on_random_llama
from pipeline.compress import compress
from schemas.request.config import RunConfig

SPREAD = 0.10


@dataclass
class Traffic:
    """Bytes and objects that this process sent and received, bytes of files that it read, and the
    parameters of the model.
    """

    sent: int = 0
    received: int = 0
    objects: int = 0
    read: int = 0
    parameters: int = 0


def counted(config: RunConfig) -> Traffic:
    """What passes through this process in one run; to be called in a fresh one."""
    traffic, context = Traffic(), SerializationContext
    serialize, deserialize = context.serialize, context.deserialize_objects

    def count_sent(self: SerializationContext, value: Any) -> Any:
        content: Any = serialize(self, value)
        traffic.sent += content.total_bytes
        traffic.objects += 1
        return content

    def count_received(self: SerializationContext, found: Sequence[Any], *rest: Any) -> Any:
        traffic.received += sum(memoryview(one[0]).nbytes for one in found if one[0] is not None)
        traffic.objects += len(found)
        return deserialize(self, list(found), *rest)

    replaced: Any = context
    replaced.serialize, replaced.deserialize_objects = count_sent, count_received
    before = _read_bytes()
    result = compress(config)
    traffic.read = _read_bytes() - before
    traffic.parameters = result.outputs[0].compression.parameters_before
    return traffic


def main() -> None:
    """Count at every width."""
    options = _parse()
    found = [
        on_random_llama(
            counted,
            options.work_dir,
            hidden,
            options.layers,
            (options.samples, options.length),
            workers=options.workers,
        )
        for hidden in options.hidden
    ]
    table = Table("hidden", title=f"Through the driver, {options.layers} layers")
    headings = ("parameters", "sent, B", "received, B", "objects", "hidden states, B", "files, B")
    for heading in headings:
        table.add_column(heading, justify="right")
    rows = 3 * options.samples * options.length  # up twice, and gradients down once
    for hidden, traffic in zip(options.hidden, found, strict=True):
        table.add_row(
            str(hidden),
            f"{traffic.parameters:,}",
            f"{traffic.sent:,}",
            f"{traffic.received:,}",
            f"{traffic.objects:,}",
            f"{rows * hidden * 4 * (options.workers - 1):,}",
            f"{traffic.read:,}",
        )
    through = [traffic.sent + traffic.received for traffic in found]
    spread = max(through) / min(through) - 1
    table.add_section()
    table.add_row("spread", "", f"{spread:.1%}")
    Console(width=110).print(table)
    sys.exit(int(spread > SPREAD))


def _read_bytes() -> int:
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(re.findall(r"rchar: (\d+)", text)[0])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="windows of text in each stream")
    parser.add_argument("--length", type=int, default=128, help="tokens in a window")
    return parser.parse_args()


if __name__ == "__main__":
    main()
