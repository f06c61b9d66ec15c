"""The inputs of a run: the base checkpoint, and the windows of text."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.request.adopt import Adopted, adopt
from pipeline.request.preflight import Checked
from schemas.errors import TextError
from schemas.model.spec import ModelSpec
from schemas.request.config import RunConfig
from schemas.request.gradients import gradient_windows
from schemas.request.texts import shares_of, split
from schemas.run.texts import TextFacts
from workers.checkpoint.contents import base_files
from workers.evaluation.perplexity import require_vocabulary
from workers.model.loading import load_tokenizer
from workers.text.mixture import read_mixture
from workers.text.sources import checksum_of, evaluation_source, is_local
from workers.text.windows import Tokens, calibration_windows, evaluation_windows, read_text


class EvaluationText(NamedTuple):
    """The name of a text, its windows (w, length) of tokens, and the checksum of a local file."""

    name: str
    windows: Tensor
    sha256: str | None = None


class RecoveryText(NamedTuple):
    """Windows (w, length) of tokens to train on, and others to judge by."""

    windows: Tensor
    held_out: Tensor


class Inputs(NamedTuple):
    """A base checkpoint, known from its headers, tokens (windows, length) for each stream, and how
    each of its texts was read.

    There are no windows in `forward` if the run does not calibrate, but trains what is `adopted`
    (else that is cut further).
    """

    folder: Path
    spec: ModelSpec
    base_files: dict[str, str]
    forward: Tensor
    backward: Tensor | None
    evaluation: EvaluationText | None = None
    recovery: RecoveryText | None = None
    texts: Sequence[TextFacts] = ()
    adopted: Adopted | None = None

    def own_norms(self, config: RunConfig) -> bool:
        """Whether norms are trained, or were in what is adopted: they are not the base's."""
        adopted = self.adopted is not None and self.adopted.compression.own_norms
        return adopted or config.recovery.norms


def tokens_sha256(windows: Tensor) -> str:
    """Identify windows (count, tokens) of text by the tokens that the model sees."""
    content = repr(tuple(windows.shape)).encode() + windows.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def gather(checked: Checked) -> Inputs:
    """Tokenise the texts of a run, and take them out of `checked`.

    Raises CheckpointError, TextError or ConfigError.
    """
    config, folder, spec, _ = checked
    tokenizer = load_tokenizer(folder, trust_remote_code=False)
    text, tokens = config.calibration, dict[str, Tokens]()
    texts = list[TextFacts]()
    forward, backward = torch.empty(0, text.sequence_length, dtype=torch.long), None
    if config.calibrates:
        # Read for gradients, too, if none are taken: all methods choose from the same text.
        gradients = (gradient_windows(text, spec), text.gradient_length)
        streams = [(text.samples, text.sequence_length), gradients]
        mixture = read_mixture(text.text, tokenizer, streams, checked.texts)
        tokens, texts = mixture.tokens, mixture.facts
        forward = mixture.windows(text.sequence_length, text.samples, config.seed)
        if config.needs_gradients:
            count, length = gradients
            backward = mixture.windows(length, count, config.seed, "calibration (gradients)")
    try:
        recovery = _recovery(config, tokenizer, tokens, texts) if config.trains else None
    except TextError as error:
        if config.calibrates or config.recovery.text:
            raise
        raise TextError(f"{error}; or name another text with --recovery-text") from error
    evaluation = _evaluation(checked, tokenizer, texts)
    scored = () if evaluation is None else (evaluation.windows,)
    calibrated = (found.whole() for found in tokens.values())
    for found in (*calibrated, *(recovery or ()), *scored):
        require_vocabulary(folder, found, spec.vocab_size)
    files = base_files(folder, spec)
    return Inputs(
        folder=folder,
        spec=spec,
        base_files=files,
        forward=forward,
        backward=backward,
        evaluation=evaluation,
        recovery=recovery,
        texts=texts,
        adopted=None if config.adopt is None else adopt(config.adopt, config, spec, files),
    )


def _recovery(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Mapping[str, Tokens],
    texts: list[TextFacts],
) -> RecoveryText:
    """Return windows of the texts to train on, mixed by their shares; `calibration` are tokens of
    calibration texts that were read, of local ones all. Adds how others were read to `texts`.
    Raises TextError if there are too few tokens.
    """
    asked = config.recovery
    sources = shares_of(asked.text) or shares_of(config.calibration.text)
    wanted = max(1, config.training_tokens // asked.sequence_length)
    judges = split(asked.held_out, sources)
    trained, held_out = list[Tensor](), list[Tensor]()
    for name, part in split(wanted, sources).items():
        first = judges[name]  # the same of a local text, however many are trained on
        count = max(part, 1) + first
        length, local = asked.sequence_length, is_local(name)
        tokens = calibration.get(name) if local else None
        if tokens is None:
            least = None if local else count * length
            tokens, facts = read_text(name, "recovery", tokenizer, least)
            texts.append(facts)
        there = max(min(count, len(tokens.windows(length))), 1)
        found = calibration_windows(tokens, length, there, config.seed, f"recovery ({name})")
        held_out.append(found[:first])
        trained.append(found[first:])
    windows, judging = torch.cat(trained), torch.cat(held_out)
    if not len(windows):
        raise TextError(
            f"recovery text: {len(judging)} windows of {asked.sequence_length} tokens, and "
            f"{asked.held_out} of them are held out; name a longer text, or set "
            "recovery.held_out"
        )
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(config.seed))
    return RecoveryText(windows[order], judging)


def _evaluation(
    checked: Checked, tokenizer: PreTrainedTokenizerBase, texts: list[TextFacts]
) -> EvaluationText | None:
    """Return the text to compare models on, if any; add to `texts` how it was read.

    Raises TextError if it is too short.
    """
    config, asked = checked.config, checked.config.evaluation
    if (name := evaluation_source(asked.text, config.calibration.text)) is None:
        return None
    wanted, checksum = asked.windows * asked.sequence_length, checksum_of(name)
    tokens, facts = read_text(name, "evaluation", tokenizer, wanted)
    texts.append(facts)
    windows = evaluation_windows(tokens, asked.sequence_length, asked.windows)
    return EvaluationText(name, windows, checksum)
