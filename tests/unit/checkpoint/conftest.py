"""A tiny compressed checkpoint, to spoil; and what is said of a refused base."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas.errors import CheckpointError
from schemas.result.manifest import FileEntry, Manifest
from schemas.result.output import MatrixResult
from schemas.run.identity import Identities
from tests.loads import load_here
from tests.low_rank import Checkpoint, make_checkpoint
from tests.models import tiny_tokenizer
from tests.prose import VOCABULARY
from tests.reports import compression
from workers.checkpoint.contents import base_files
from workers.model.inspection import inspect
from workers.storage.files import file_sha256

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        inspect(folder)
    return str(caught.value)


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json in place; None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def seal(folder: Path, base: Path | None = None) -> Path:
    """Write a manifest for what is in a folder now, and for the base that it was made from."""
    (folder / "manifest.json").unlink(missing_ok=True)
    manifest = Manifest(
        output="output",
        identities=Identities(forward="f", backward=None, bases="b", factors="f"),
        base_files=base_files(base, inspect(base)) if base else {},
        versions={},
        files={
            path.name: FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
            for path in folder.iterdir()
        },
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def change(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Change a tensor in place."""
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return seal(folder)


def finish(folder: Path, rows: Sequence[MatrixResult], **fields: Any) -> Path:
    """Describe a checkpoint, and mark it as finished."""
    told = compression(tuple(rows), **fields)
    (folder / "compression.json").write_text(told.model_dump_json())
    seal(folder)
    (folder / "_SUCCESS").touch()
    return folder


def finish_handmade(made: Checkpoint, **fields: Any) -> None:
    matrices = json.loads((made.folder / "config.json").read_text())["low_rank"]["matrices"]
    rows = []
    for name, matrix in matrices.items():
        owner = made.dense if name == "lm_head" else made.dense.model
        linear = owner.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        rows.append(
            MatrixResult(
                name=name,
                shape=(linear.out_features, linear.in_features),
                parameters=1,
                predicted_loss=0.0,
                achieved_loss=0.0,
                energy=None,
                **matrix,
            )
        )
    finish(made.folder, rows, **fields)


def make(folder: Path, family: str = "llama") -> Path:
    """Five layers of a family, each of another form than the next."""
    encodings = ("plain", "pivoted", "dense", "pivoted", "plain")
    sizes: dict[str, Any] = {"num_hidden_layers": 5, "vocab_size": VOCABULARY}
    if family.startswith("qwen"):
        sizes |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    make_checkpoint(folder, family, encodings, **sizes)
    tiny_tokenizer().save_pretrained(folder)
    return seal(folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


@pytest.fixture
def loads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    load_here(monkeypatch)
