"""What a run starts from: the base checkpoint, and the windows of text."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipeline.publish import SUCCESS, require_free
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.location import Url, is_within
from schemas.model import ModelSpec
from workers.checkpoint import base_files, inspect
from workers.documents import is_local, iter_documents, separator_of
from workers.fetching import resolve
from workers.layers import require_buildable
from workers.loading import load_tokenizer
from workers.objects import exists, url_of
from workers.text import calibration_windows, tokenize


class Inputs(NamedTuple):
    """A base checkpoint, known from its headers, and tokens (windows, length) for each stream."""

    folder: Path
    spec: ModelSpec
    base_files: dict[str, str]
    forward: Tensor
    backward: Tensor | None


def tokens_sha256(windows: Tensor) -> str:
    """Identity of windows (count, tokens) of text, as the model sees them."""
    content = repr(tuple(windows.shape)).encode() + windows.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def gather(config: RunConfig) -> Inputs:
    """Read headers and text. Raises CheckpointError, TextError or ConfigError before any work."""
    weights = url_of(config.model)
    folder = resolve(config.model, config.revision, config.fetched)
    _check_outputs(config, weights or folder)
    spec = inspect(folder, weights)
    require_buildable(folder, spec)
    text = config.calibration
    needed = max(text.samples * text.sequence_length, text.gradient_samples * text.gradient_length)
    tokens = tokenize(
        iter_documents(text.text, "calibration"),
        load_tokenizer(folder, trust_remote_code=False),
        separator_of(text.text),
        at_least=None if is_local(text.text) else needed,
    )
    if tokens.numel() and int(tokens.max()) >= spec.vocab_size:
        raise ConfigError(
            f"model {config.model!r}: its tokenizer gives token {int(tokens.max())}, but the "
            f"embedding has {spec.vocab_size} rows; the tokenizer is not this model's"
        )
    backward = None
    if config.needs_gradients:
        backward = calibration_windows(
            tokens, text.gradient_length, text.gradient_samples, config.seed
        )
    return Inputs(
        folder=folder,
        spec=spec,
        base_files=base_files(folder, spec),
        forward=calibration_windows(tokens, text.sequence_length, text.samples, config.seed),
        backward=backward,
    )


def _check_outputs(config: RunConfig, base: Path | Url) -> None:
    for ratio in config.ratio:
        output = config.output_folder(ratio)
        if is_within(output.absolute() if isinstance(output, Path) else output, base):
            raise ConfigError(f"output {output} is inside the model {base}; name another folder")
        require_free(output)
    if len(config.ratio) > 1 and exists(config.output / SUCCESS):
        raise ConfigError(
            f"output {config.output} is a checkpoint itself, so several ratios cannot go below it; "
            "name another folder"
        )
