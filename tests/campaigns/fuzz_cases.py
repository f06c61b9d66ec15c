"""What the fuzz campaign changes: a tiny checkpoint, its text and the request, one kind at a time.

Everything here is made without Ray, so that what needs none is seen to need none.
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow import parquet

from tests.models import tiny_model
from tests.prose import prose

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Values that no field of a configuration expects; a few of them are right for some.
_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**9, 10**30, 0.5, -0.0, 1e308),
    *("", "abc", "32", "../../etc/passwd", "\x1b[2J", "\n---\n", "\ud800", "x" * 10_000, "nan"),
    *([], [32], {}, {"a": 1}, {"rope_type": "linear"}, {"quant_method": "fp8"}, [[]] * 100),
)
_HOSTILE_PATHS = (
    *("../model.safetensors", "/etc/passwd", "/etc/x.safetensors", "a/../b.safetensors", "..", ""),
    *("a\0.safetensors", "a\n.safetensors", "\x1b.safetensors", "x" * 300 + ".safetensors", "."),
    *("model.safetensors/", "model.bin", "C:\\x.safetensors", "~/x.safetensors"),
    "absent.safetensors",
)
_RATIOS = ("abc", "nan", "1", "-0.1", "0.2,,0.4", "0.9999", "1e-400", "inf", "", "0", "0.3,0.3")


@dataclass
class Case:
    """One request on a copy of the checkpoint, all below `root`."""

    root: Path
    rng: random.Random
    ratio: str = "0.3"
    output: str = ""
    text: str = "text.txt"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def path(self, name: str) -> Path:
        return self.model / name


def write_base(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer, and a text beside it."""
    tiny_model(folder / "model", max_position_embeddings=256)
    (folder / "text.txt").write_text(prose(40_000))


def _flip(path: Path, rng: random.Random, start: int = 0, stop: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 3, 20))):
        content[rng.randrange(start, stop or len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _header(case: Case, change: Callable[[dict[str, Any], str], Any]) -> None:
    """Change the header of the weights in place, given one of its tensors."""
    raw = case.path(WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:end])
    change(entries, case.rng.choice([name for name in entries if name != "__metadata__"]))
    text = json.dumps(entries).encode()
    case.path(WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def _flip_header(case: Case) -> None:
    length = int.from_bytes(case.path(WEIGHTS).read_bytes()[:8], "little")
    _flip(case.path(WEIGHTS), case.rng, 0, 8 + length)


def _huge_header(case: Case) -> None:
    length = case.rng.choice((10**6, 10**8 + 1, 2**40, 2**63, 2**64 - 1))
    tail = case.path(WEIGHTS).read_bytes()[8:]
    case.path(WEIGHTS).write_bytes(length.to_bytes(8, "little") + tail)
    if case.rng.random() < 0.5 and length < 2**41:
        os.truncate(case.path(WEIGHTS), 8 + length)  # as long as it says, and sparse


def _shapes(case: Case) -> None:
    def change(entries: dict[str, Any], name: str) -> None:
        shape = entries[name]["shape"]
        strange: tuple[Any, ...] = (
            [*reversed(shape)],
            [1, *shape],
            [-1],
            [2**40] * 3,
            [],
            shape * 2,
            ["32"],
            None,
        )
        entries[name]["shape"] = case.rng.choice(strange)

    _header(case, change)


def _swapped(case: Case) -> None:
    def change(entries: dict[str, Any], name: str) -> None:
        other = case.rng.choice([key for key in entries if key != "__metadata__"])
        entries[name], entries[other] = entries[other], entries[name]

    _header(case, change)


def _offsets(case: Case) -> None:
    def change(entries: dict[str, Any], name: str) -> None:
        start, stop = entries[name]["data_offsets"]
        strange = ([0, stop - start], [stop, start], [start, 2**63], [-8, -4], [start], ["0", "4"])
        entries[name]["data_offsets"] = case.rng.choice(strange)

    _header(case, change)


def _names(case: Case) -> None:
    strange = ("../x", "/etc/passwd", "\x1b[2J\nerror: x", "", "model", "\ud800", "a" * 10**5)

    def change(entries: dict[str, Any], name: str) -> None:
        entries[case.rng.choice(strange)] = entries.pop(name)

    _header(case, change)


def _dtypes(case: Case) -> None:
    strange = ("F8_E4M3", "I32", "BF16", "F64", "U8", "x", 3, None, ["F32"])
    _header(case, lambda entries, name: entries[name].update(dtype=case.rng.choice(strange)))


def _index(case: Case, change: Callable[[dict[str, Any], str], Any]) -> None:
    raw = case.path(WEIGHTS).read_bytes()
    names = [*json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])]
    weight_map = {name: WEIGHTS for name in names if name != "__metadata__"}
    change(weight_map, case.rng.choice([*weight_map]))
    case.path(INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _index_paths(case: Case) -> None:
    _index(case, lambda found, name: found.update({name: case.rng.choice(_HOSTILE_PATHS)}))


def _index_values(case: Case) -> None:
    _index(case, lambda found, name: found.update({name: case.rng.choice(_STRANGE)}))


def _link(case: Case) -> None:
    path = case.path(case.rng.choice((WEIGHTS, "config.json", "tokenizer.json")))
    outside = ("/etc/passwd", "/dev/zero", "/proc/self/mem", "../text.txt")
    target = case.rng.choice((*outside, path.name))
    path.unlink()
    path.symlink_to(target)


def _no_file(case: Case) -> None:
    path = case.path(case.rng.choice((WEIGHTS, INDEX, "config.json", "tokenizer.json")))
    path.unlink(missing_ok=True)
    match case.rng.randrange(3):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()


def _foreign(case: Case) -> None:
    """Bytes that would run a command, if anyone unpickled them."""
    suffix = case.rng.choice((".bin", ".pt", ".pth", ".gguf", ".ckpt"))
    case.path(WEIGHTS).unlink()
    pickled = f"cos\nsystem\n(S'touch {case.root / 'unpickled'}'\ntR."
    case.path(f"pytorch_model{suffix}").write_text(pickled)


def _config(case: Case) -> None:
    config = json.loads(case.path("config.json").read_text())
    for _ in range(case.rng.choice((1, 1, 3))):
        config[case.rng.choice([*config, "quantization_config", "auto_map", "layer_types"])] = (
            case.rng.choice(_STRANGE)
        )
    case.path("config.json").write_text(json.dumps(config))


def _config_without(case: Case) -> None:
    config = json.loads(case.path("config.json").read_text())
    config.pop(case.rng.choice([*config]))
    case.path("config.json").write_text(json.dumps(config))


def _config_text(case: Case) -> None:
    text = case.path("config.json").read_text()
    strange = (
        *("", "[]", "{", "null", "[" * 10**5, '{"a":' * 10**5, text[:-1] + ', "vocab_size": 384}'),
        *(text.replace("32", "NaN", 1), text.replace("32", "Infinity", 1), "\ufeff" + text),
        *(text.replace("32", "9" * 5000, 1), text.replace("32", "32e0", 1)),
    )
    case.path("config.json").write_text(case.rng.choice(strange))


def _tokenizer(case: Case) -> None:
    found = json.loads(case.path("tokenizer.json").read_text())
    found[case.rng.choice([*found])] = case.rng.choice([v for v in _STRANGE if v != "\ud800"])
    case.path("tokenizer.json").write_text(json.dumps(found))


def _jsonl(case: Case) -> None:
    rows = [json.dumps({"text": "some words " * 200}) for _ in range(4)]
    rows[case.rng.randrange(4)] = case.rng.choice(
        ("{", "[" * 10**5, '{"text": 3}', "{}", '{"text": "\\ud800"}', '{"text": null}', "[]", "x")
    )
    case.text = "text.jsonl"
    (case.root / case.text).write_text("\n".join(rows))


def _parquet(case: Case) -> None:
    case.text, column = "text.parquet", case.rng.choice(("text", "text", "body"))
    parquet.write_table(pa.table({column: ["some words " * 200] * 4}), case.root / case.text)
    if case.rng.random() < 0.8:
        _flip(case.root / case.text, case.rng)


def _text(case: Case) -> None:
    """Not enough, nothing, or not what its name says."""
    strange = (b"", b" \n", b"\0" * 4000, b"\xff\xfe" * 900, "größe ".encode("utf-16") * 400, b"a")
    (case.root / case.text).write_bytes(case.rng.choice(strange))


def _ratio(case: Case) -> None:
    case.ratio = case.rng.choice(_RATIOS)


def _output(case: Case) -> None:
    case.output = case.rng.choice(
        (
            *("model/out", "model", "model/../model/out", "text.txt/out", ".", "", "x" * 300),
            *("s3://key:secret@bucket/out", "s3://", "a\nb\x1b[2J", "a/../../" + "b" * 5000),
        )
    )


KINDS: dict[str, Callable[[Case], None]] = {
    "weights: bytes of values": lambda c: _flip(c.path(WEIGHTS), c.rng, 4096),
    "weights: bytes of the header": _flip_header,
    "weights: cut": lambda c: _cut(c.path(WEIGHTS), c.rng),
    "weights: huge headers": _huge_header,
    "weights: shapes": _shapes,
    "weights: swapped tensors": _swapped,
    "weights: offsets": _offsets,
    "weights: names": _names,
    "weights: dtypes": _dtypes,
    "weights: one tensor less": lambda c: _header(c, lambda entries, name: entries.pop(name)),
    "index: paths": _index_paths,
    "index: values": _index_values,
    "folder: links": _link,
    "folder: no file": _no_file,
    "folder: pickled weights": _foreign,
    "config: values": _config,
    "config: one field less": _config_without,
    "config: JSON": _config_text,
    "config: bytes": lambda c: _flip(c.path("config.json"), c.rng),
    "tokenizer: bytes": lambda c: _flip(c.path("tokenizer.json"), c.rng),
    "tokenizer: cut": lambda c: _cut(c.path("tokenizer.json"), c.rng),
    "tokenizer: values": _tokenizer,
    "text: bytes": lambda c: _flip(c.root / c.text, c.rng),
    "text: none": _text,
    "text: rows of .jsonl": _jsonl,
    "text: bytes of .parquet": _parquet,
    "request: ratio": _ratio,
    "request: output": _output,
}
