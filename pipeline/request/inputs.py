"""The inputs of a run: the base checkpoint, and the windows of text."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.request.preflight import Checked
from schemas.errors import ConfigError, TextError
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.gradients import with_gradients
from schemas.request.recovery import share_of
from workers.checkpoint.contents import base_files
from workers.model.loading import load_tokenizer
from workers.text.documents import (
    Split,
    evaluation_source,
    is_local,
    iter_documents,
    separator_of,
)
from workers.text.windows import calibration_windows, evaluation_windows, tokenize


class EvaluationText(NamedTuple):
    """The name of a text, and its windows (w, length) of tokens."""

    name: str
    windows: Tensor


class RecoveryText(NamedTuple):
    """Windows (w, length) of tokens to train on, and others to judge by."""

    windows: Tensor
    held_out: Tensor


class Inputs(NamedTuple):
    """A base checkpoint, known from its headers, and tokens (windows, length) for each stream."""

    folder: Path
    spec: ModelSpec
    base_files: dict[str, str]
    forward: Tensor
    backward: Tensor | None
    evaluation: EvaluationText | None = None
    recovery: RecoveryText | None = None


def tokens_sha256(windows: Tensor) -> str:
    """Identify windows (count, tokens) of text by the tokens that the model sees."""
    content = repr(tuple(windows.shape)).encode() + windows.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def gather(checked: Checked) -> Inputs:
    """Tokenise the texts of a run, and take them out of `checked`.

    Raises CheckpointError, TextError or ConfigError.
    """
    config, folder, spec, _ = checked
    text = with_gradients(config, spec).calibration
    gradient_samples = text.gradient_samples or 0
    needed = max(text.samples * text.sequence_length, gradient_samples * text.gradient_length)
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    tokens = tokenize(
        _documents(checked, text.text, "calibration"),
        tokenizer,
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
        backward = calibration_windows(tokens, text.gradient_length, gradient_samples, config.seed)
    return Inputs(
        folder=folder,
        spec=spec,
        base_files=base_files(folder, spec),
        forward=calibration_windows(tokens, text.sequence_length, text.samples, config.seed),
        backward=backward,
        evaluation=_evaluation(checked, tokenizer),
        recovery=_recovery(config, tokenizer, tokens) if config.trains else None,
    )


def _recovery(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, calibration: Tensor
) -> RecoveryText:
    """Return windows of the texts to train on, mixed by their shares; `calibration` are tokens of
    the calibration text, all of them if it is local. Raises TextError if there are too few.
    """
    asked = config.recovery
    sources = dict(map(share_of, asked.text or (config.calibration.text,)))
    wanted = max(1, config.training_tokens // asked.sequence_length) + asked.held_out
    found = []
    for name, share in sources.items():
        count = math.ceil(wanted * share / sum(sources.values()))
        length, tokens = asked.sequence_length, calibration
        if name != config.calibration.text or not is_local(name):
            documents = iter_documents(name, "calibration")
            tokens = tokenize(documents, tokenizer, separator_of(name), count * length)
        there = max(min(count, tokens.numel() // length), 1)
        found.append(calibration_windows(tokens, length, there, config.seed, f"recovery ({name})"))
    windows = torch.cat(found)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    windows = windows[order]
    if len(windows) <= asked.held_out:
        raise TextError(
            f"recovery text: {len(windows)} windows of {asked.sequence_length} tokens, and "
            f"{asked.held_out} of them are held out; name a longer text, or set recovery.held_out"
        )
    return RecoveryText(windows[asked.held_out :], windows[: asked.held_out])


def _evaluation(checked: Checked, tokenizer: PreTrainedTokenizerBase) -> EvaluationText | None:
    """Return the text to compare models on, if any. Raises TextError if it is too short."""
    config, asked = checked.config, checked.config.evaluation
    if (name := evaluation_source(asked.text, config.calibration.text)) is None:
        return None
    documents = _documents(checked, name, "evaluation")
    wanted = asked.windows * asked.sequence_length
    tokens = tokenize(documents, tokenizer, separator_of(name), wanted)
    return EvaluationText(name, evaluation_windows(tokens, asked.sequence_length, asked.windows))


def _documents(checked: Checked, text: str, split: Split) -> Iterable[str]:
    """Return the documents of a text: those that were read, else a stream."""
    return checked.texts.pop(text, None) or iter_documents(text, split)
